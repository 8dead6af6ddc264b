/* sr_codes.h: the tags (PS3.6) and coded concepts (PS3.16) of a TID 1500 report, for the writer and for the lint.
 * Concepts are (code value, coding scheme designator, code meaning), with the meaning that PS3.16 prints. */
#ifndef RADAPT_SR_CODES_H
#define RADAPT_SR_CODES_H

enum {
    TAG_SpecificCharacterSet = 0x00080005,
    TAG_InstanceCreationDate = 0x00080012,
    TAG_InstanceCreationTime = 0x00080013,
    TAG_SOPClassUID = 0x00080016,
    TAG_SOPInstanceUID = 0x00080018,
    TAG_StudyDate = 0x00080020,
    TAG_SeriesDate = 0x00080021,
    TAG_ContentDate = 0x00080023,
    TAG_StudyTime = 0x00080030,
    TAG_SeriesTime = 0x00080031,
    TAG_ContentTime = 0x00080033,
    TAG_AccessionNumber = 0x00080050,
    TAG_Modality = 0x00080060,
    TAG_Manufacturer = 0x00080070,
    TAG_ReferringPhysicianName = 0x00080090,
    TAG_CodeValue = 0x00080100,
    TAG_CodingSchemeDesignator = 0x00080102,
    TAG_CodeMeaning = 0x00080104,
    TAG_MappingResource = 0x00080105,
    TAG_CodingSchemeIdentificationSequence = 0x00080110,
    TAG_CodingSchemeName = 0x00080115,
    TAG_TimezoneOffsetFromUTC = 0x00080201,
    TAG_StudyDescription = 0x00081030,
    TAG_SeriesDescription = 0x0008103E,
    TAG_ManufacturerModelName = 0x00081090,
    TAG_ReferencedPerformedProcedureStepSequence = 0x00081111,
    TAG_ReferencedSeriesSequence = 0x00081115,
    TAG_ReferencedSOPClassUID = 0x00081150,
    TAG_ReferencedSOPInstanceUID = 0x00081155,
    TAG_ReferencedFrameNumber = 0x00081160,
    TAG_ReferencedSOPSequence = 0x00081199,
    TAG_PatientName = 0x00100010,
    TAG_PatientID = 0x00100020,
    TAG_IssuerOfPatientID = 0x00100021,
    TAG_PatientBirthDate = 0x00100030,
    TAG_PatientSex = 0x00100040,
    TAG_DeviceSerialNumber = 0x00181000,
    TAG_DeviceUID = 0x00181002,
    TAG_SoftwareVersions = 0x00181020,
    TAG_ContributionDateTime = 0x0018A002,
    TAG_ContributionDescription = 0x0018A003,
    TAG_ContributingEquipmentSequence = 0x0018A001,
    TAG_StudyInstanceUID = 0x0020000D,
    TAG_SeriesInstanceUID = 0x0020000E,
    TAG_StudyID = 0x00200010,
    TAG_SeriesNumber = 0x00200011,
    TAG_InstanceNumber = 0x00200013,
    TAG_MeasurementUnitsCodeSequence = 0x004008EA,
    TAG_RelationshipType = 0x0040A010,
    TAG_ValueType = 0x0040A040,
    TAG_ConceptNameCodeSequence = 0x0040A043,
    TAG_ContinuityOfContent = 0x0040A050,
    TAG_UID = 0x0040A124,
    TAG_TextValue = 0x0040A160,
    TAG_ConceptCodeSequence = 0x0040A168,
    TAG_PurposeOfReferenceCodeSequence = 0x0040A170,
    TAG_MeasuredValueSequence = 0x0040A300,
    TAG_NumericValue = 0x0040A30A,
    TAG_PerformedProcedureCodeSequence = 0x0040A372,
    TAG_CurrentRequestedProcedureEvidenceSequence = 0x0040A375,
    TAG_CompletionFlag = 0x0040A491,
    TAG_VerificationFlag = 0x0040A493,
    TAG_PreliminaryFlag = 0x0040A496,
    TAG_ContentTemplateSequence = 0x0040A504,
    TAG_TemplateIdentifier = 0x0040DB00,
    TAG_ContentSequence = 0x0040A730,
};

typedef struct {
    const char *value, *scheme, *meaning;
} sr_code;

#define SR_IMAGING_MEASUREMENT_REPORT ((sr_code){"126000", "DCM", "Imaging Measurement Report"})
#define SR_LANGUAGE ((sr_code){"121049", "DCM", "Language of Content Item and Descendants"})
#define SR_ENGLISH_US ((sr_code){"en-US", "RFC5646", "English (United States)"})
#define SR_OBSERVER_TYPE ((sr_code){"121005", "DCM", "Observer Type"})
#define SR_DEVICE ((sr_code){"121007", "DCM", "Device"})
#define SR_DEVICE_UID ((sr_code){"121012", "DCM", "Device Observer UID"})
#define SR_DEVICE_NAME ((sr_code){"121013", "DCM", "Device Observer Name"})
#define SR_DEVICE_MANUFACTURER ((sr_code){"121014", "DCM", "Device Observer Manufacturer"})
#define SR_DEVICE_MODEL ((sr_code){"121015", "DCM", "Device Observer Model Name"})
#define SR_DEVICE_SERIAL ((sr_code){"121016", "DCM", "Device Observer Serial Number"})
#define SR_PROCEDURE_REPORTED ((sr_code){"121058", "DCM", "Procedure reported"})
#define SR_IMAGE_LIBRARY ((sr_code){"111028", "DCM", "Image Library"})
#define SR_IMAGE_LIBRARY_GROUP ((sr_code){"126200", "DCM", "Image Library Group"})
#define SR_MODALITY ((sr_code){"121139", "DCM", "Modality"})
#define SR_IMAGING_MEASUREMENTS ((sr_code){"126010", "DCM", "Imaging Measurements"})
#define SR_MEASUREMENT_GROUP ((sr_code){"125007", "DCM", "Measurement Group"})
#define SR_TRACKING_ID ((sr_code){"112039", "DCM", "Tracking Identifier"})
#define SR_TRACKING_UID ((sr_code){"112040", "DCM", "Tracking Unique Identifier"})
#define SR_FINDING ((sr_code){"121071", "DCM", "Finding"})
/* PS3.16 CID 6047: of a Finding where nothing was found. */
#define SR_WITHOUT_FINDINGS ((sr_code){"111241", "DCM", "All algorithms succeeded; without findings"})
#define SR_ALGORITHM_NAME ((sr_code){"111001", "DCM", "Algorithm Name"})
#define SR_ALGORITHM_VERSION ((sr_code){"111003", "DCM", "Algorithm Version"})
#define SR_ALGORITHM_PARAMETERS ((sr_code){"111002", "DCM", "Algorithm Parameters"})
#define SR_PROBABILITY ((sr_code){"122157", "DCM", "Probability"})
#define SR_NO_UNITS ((sr_code){"1", "UCUM", "no units"})
#define SR_SOURCE_OF_MEASUREMENT ((sr_code){"121112", "DCM", "Source of Measurement"})
#define SR_COMMENT ((sr_code){"121106", "DCM", "Comment"})
#define SR_PROCESSING_EQUIPMENT ((sr_code){"109102", "DCM", "Processing Equipment"})

#define SR_SOP_CLASS_ENHANCED "1.2.840.10008.5.1.4.1.1.88.22"
#define SR_SOP_CLASS_COMPREHENSIVE "1.2.840.10008.5.1.4.1.1.88.33"
#define SR_SOP_CLASS_COMPREHENSIVE_3D "1.2.840.10008.5.1.4.1.1.88.34"

/* Stands in the series description, the observer's name and the finding's comment. */
#define SR_RESEARCH_USE_ONLY "research use only"

#endif
