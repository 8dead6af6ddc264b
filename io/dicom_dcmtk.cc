/* dicom_dcmtk.cc: headers through DCMTK (pixels: dicom_frame_dcmtk.cc). It copies attributes and decides nothing:
 * image.c does. DCMTK's own messages are switched off, since they quote values and paths. */
#include "dcmtk/config/osconfig.h"
#include "dcmtk/dcmdata/dcdict.h"
#include "dcmtk/dcmdata/dcrledrg.h"
#include "dcmtk/dcmdata/dcvr.h"
#include "dcmtk/dcmjpeg/djdecode.h"
#include "dcmtk/dcmjpls/djdecode.h"
#include "dcmtk/oflog/oflog.h"

#include <cstdlib>
#include <cstring>
#include <mutex>

#include "base/file.h"
#include "io/dicom_file_dcmtk.h"

using namespace dicom_detail;

namespace
{

void set_up()
{
    static std::once_flag once;
    std::call_once(once, [] {
        OFLog::configure(OFLogger::OFF_LOG_LEVEL);
        dcmEnableUnknownVRConversion.set(OFTrue); /* a UID that a gateway stored as UN is a UID (PS3.5 6.2.2) */
        DJDecoderRegistration::registerCodecs(EDC_photometricInterpretation, EUC_default, EPC_colorByPixel);
        DJLSDecoderRegistration::registerCodecs(EJLSUC_default, EJLSPC_colorByPixel);
        DcmRLEDecoderRegistration::registerCodecs();
    });
}

/* Without its dictionary the toolkit takes every attribute of an implicit VR file for bytes of no meaning. It is read
 * before the file is opened, and again with the next file where it could not be. */
bool have_dictionary()
{
    bool there = dcmDataDict.rdlock().isDictionaryLoaded();
    dcmDataDict.rdunlock();
    if (there) return true;
    DcmDataDictionary &again = dcmDataDict.wrlock();
    again.reloadDictionaries(OFTrue, OFTrue);
    there = again.isDictionaryLoaded();
    dcmDataDict.wrunlock();
    return there;
}

err_code load(DcmFileFormat &file, const char *path, err *e)
{
    set_up();
    if (!have_dictionary()) FAIL(e, IO, "DICOM: the data dictionary cannot be read");
    OFCondition c = file.loadFile(path, EXS_Unknown, EGL_noChange, 1024, ERM_autoDetect);
    if (c.bad()) {
        TRY(file_readable(path, e)); /* not the file's fault: descriptors, permissions */
        if (c == EC_StreamNotifyClient || c == EC_InvalidStream || c == EC_EndOfStream)
            FAIL(e, TRUNCATED, "DICOM: the file ends inside an element");
        if (c == EC_MemoryExhausted) FAIL(e, NOMEM, "DICOM: no memory for the header");
        FAIL(e, FORMAT, "DICOM: the header cannot be parsed (condition %04x:%04x)", c.module(), c.code());
    }
    return ERR_OK;
}

/* A UID that the record would have to cut is another UID (PS3.5 9.1: 64 characters at most). */
bool uid_too_long(DcmItem &d, const DcmTagKey &tag)
{
    OFString s;
    return d.findAndGetOFStringArray(tag, s).good() && s.size() > 64;
}

/* First value of a string attribute, trailing blanks removed; cut at the record's size. */
template <size_t N> void text(DcmItem &d, const DcmTagKey &tag, char (&out)[N])
{
    OFString s;
    out[0] = 0;
    if (d.findAndGetOFStringArray(tag, s).bad()) return;
    size_t n = s.size();
    while (n && (s[n - 1] == ' ' || s[n - 1] == '\0')) n--;
    size_t start = 0;
    while (start < n && s[start] == ' ') start++;
    n -= start;
    if (n >= N) { /* never inside a UTF-8 character */
        n = N - 1;
        while (n && (static_cast<unsigned char>(s[start + n]) & 0xC0) == 0x80) n--;
    }
    std::memcpy(out, s.data() + start, n);
    out[n] = 0;
}

bool number(DcmItem &d, const DcmTagKey &tag, double *out, unsigned long at = 0)
{
    return d.findAndGetFloat64(tag, *out, at).good();
}

DcmItem *item(DcmItem *d, const DcmTagKey &sequence)
{
    DcmItem *i = nullptr;
    return d && d->findAndGetSequenceItem(sequence, i, 0).good() ? i : nullptr;
}

void read_window(DcmItem &d, image_header *h)
{
    OFString function;
    DcmElement *c = nullptr;
    if (h->window.present || d.findAndGetElement(DCM_WindowCenter, c).bad() || !c) return;
    for (unsigned long i = 0; i < c->getVM() && i < 16; i++) {
        voi_window w = {true, VOI_LINEAR, 0, 0};
        if (!number(d, DCM_WindowCenter, &w.center, i) || !number(d, DCM_WindowWidth, &w.width, i)) break;
        if (d.findAndGetOFString(DCM_VOILUTFunction, function).good()) {
            if (function == "LINEAR_EXACT") w.function = VOI_LINEAR_EXACT;
            if (function == "SIGMOID") w.function = VOI_SIGMOID;
        }
        double least = w.function == VOI_LINEAR ? 1 : 0; /* C.11.2.1.2: width >= 1; others > 0 */
        if (!(w.width > 0 && w.width >= least) || w.width > 1e9 || !(w.center > -1e9 && w.center < 1e9)) {
            h->quirks |= QUIRK_ZERO_WINDOW;
            continue;
        }
        h->window = w;
        return;
    }
}

void read_rescale(DcmItem &d, image_header *h)
{
    double slope, intercept;
    if (h->has_rescale || !number(d, DCM_RescaleSlope, &slope) || !number(d, DCM_RescaleIntercept, &intercept)) return;
    if (!(slope != 0 && slope > -1e12 && slope < 1e12 && intercept > -1e12 && intercept < 1e12)) return;
    h->has_rescale = true;
    h->rescale_slope = slope;
    h->rescale_intercept = intercept;
}

/* PS3.3 C.11.1.1.1: descriptor = entries (0 means 65536), first value mapped, bits. */
void read_lut(DcmItem *d, bool is_signed, lookup_table *out)
{
    const Uint16 *data = nullptr;
    unsigned long count = 0;
    DcmElement *descriptor = nullptr;
    if (!d || out->present || d->findAndGetElement(DCM_LUTDescriptor, descriptor).bad() || !descriptor) return;
    long v[3];
    for (unsigned long i = 0; i < 3; i++) {
        Uint16 u;
        Sint16 s;
        if (descriptor->getUint16(u, i).good())
            v[i] = u;
        else if (descriptor->getSint16(s, i).good())
            v[i] = i == 1 ? s : static_cast<Uint16>(s);
        else
            return;
    }
    if (is_signed && v[1] > 32767) v[1] -= 65536;
    long entries = v[0] ? v[0] : 65536;
    if (d->findAndGetUint16Array(DCM_LUTData, data, &count).bad() || !data || static_cast<long>(count) < entries)
        return;
    if (v[2] < 8 || v[2] > 16) return;
    out->data = static_cast<uint16_t *>(std::malloc(static_cast<size_t>(entries) * sizeof(uint16_t)));
    if (!out->data) throw std::bad_alloc();
    std::memcpy(out->data, data, static_cast<size_t>(entries) * sizeof(uint16_t));
    out->present = true;
    out->first = static_cast<int>(v[1]);
    out->entries = static_cast<int>(entries);
    out->bits = static_cast<int>(v[2]);
}

void read_geometry(DcmItem &d, image_header *h)
{
    double v[6];
    bool all = true;
    if (!h->has_position) {
        for (unsigned long i = 0; i < 3; i++) all = all && number(d, DCM_ImagePositionPatient, &v[i], i);
        if (all) std::memcpy(h->position_mm, v, sizeof h->position_mm);
        h->has_position = all;
    }
    if (!h->has_orientation) {
        all = true;
        for (unsigned long i = 0; i < 6; i++) all = all && number(d, DCM_ImageOrientationPatient, &v[i], i);
        if (all) std::memcpy(h->orientation, v, sizeof h->orientation);
        h->has_orientation = all;
    }
    if (!h->has_spacing) {
        const DcmTagKey tags[] = {DCM_PixelSpacing, DCM_ImagerPixelSpacing};
        for (const DcmTagKey &tag : tags) {
            if (h->has_spacing || !number(d, tag, &v[0], 0) || !number(d, tag, &v[1], 1)) continue;
            if (!(v[0] > 0 && v[1] > 0 && v[0] < 1e4 && v[1] < 1e4)) continue;
            std::memcpy(h->spacing_mm, v, sizeof h->spacing_mm);
            h->has_spacing = true;
        }
    }
    if (h->slice_spacing_mm == 0) number(d, DCM_SpacingBetweenSlices, &h->slice_spacing_mm);
}

/* PS3.3 C.7.6.16: an enhanced object keeps window, rescale and geometry in functional groups: shared, then the first
 * frame's. */
void read_functional_groups(DcmItem &d, image_header *h)
{
    DcmItem *groups[] = {item(&d, DCM_SharedFunctionalGroupsSequence), item(&d, DCM_PerFrameFunctionalGroupsSequence)};
    for (DcmItem *g : groups) {
        if (DcmItem *i = item(g, DCM_PixelValueTransformationSequence)) read_rescale(*i, h);
        if (DcmItem *i = item(g, DCM_FrameVOILUTSequence)) read_window(*i, h);
        const DcmTagKey geometry[] = {DCM_PlanePositionSequence, DCM_PlaneOrientationSequence,
                                      DCM_PixelMeasuresSequence};
        for (const DcmTagKey &tag : geometry)
            if (DcmItem *i = item(g, tag)) read_geometry(*i, h);
    }
}

photometric photometric_of(const char *s)
{
    static const struct {
        const char *name;
        photometric p;
    } known[] = {{"MONOCHROME1", PHOTOMETRIC_MONOCHROME1},
                 {"MONOCHROME2", PHOTOMETRIC_MONOCHROME2},
                 {"PALETTE COLOR", PHOTOMETRIC_PALETTE},
                 {"RGB", PHOTOMETRIC_RGB},
                 {"YBR_FULL", PHOTOMETRIC_YBR_FULL},
                 {"YBR_FULL_422", PHOTOMETRIC_YBR_FULL_422},
                 {"YBR_PARTIAL_420", PHOTOMETRIC_YBR_PARTIAL_420},
                 {"YBR_ICT", PHOTOMETRIC_YBR_ICT},
                 {"YBR_RCT", PHOTOMETRIC_YBR_RCT}};
    for (auto &k : known)
        if (!std::strcmp(k.name, s)) return k.p;
    return PHOTOMETRIC_UNKNOWN;
}

void read_pixels(DcmDataset &d, image_header *h)
{
    char word[17];
    h->rows = integer(d, DCM_Rows, 0);
    h->columns = integer(d, DCM_Columns, 0);
    h->samples = integer(d, DCM_SamplesPerPixel, 1);
    h->bits_allocated = integer(d, DCM_BitsAllocated, 0);
    h->bits_stored = integer(d, DCM_BitsStored, h->bits_allocated);
    h->high_bit = integer(d, DCM_HighBit, h->bits_stored - 1);
    h->is_signed = integer(d, DCM_PixelRepresentation, 0) == 1;
    h->planar = integer(d, DCM_PlanarConfiguration, 0) == 1;
    h->frames = 1;
    Sint32 frames;
    if (d.findAndGetSint32(DCM_NumberOfFrames, frames).good() && frames > 1) h->frames = frames;
    text(d, DCM_PhotometricInterpretation, word);
    h->photometric = photometric_of(word);
    DcmElement *low = nullptr;
    if (d.findAndGetElement(DCM_PixelPaddingValue, low).good() && low) {
        Uint16 u;
        Sint16 s;
        auto value = [&](DcmElement *el, int *out) {
            if (el->getSint16(s).good())
                *out = h->is_signed ? s : static_cast<Uint16>(s);
            else if (el->getUint16(u).good())
                *out = h->is_signed ? static_cast<Sint16>(u) : u;
            else
                return false;
            return true;
        };
        DcmElement *high = nullptr;
        h->has_padding = value(low, &h->padding_low);
        h->padding_high = h->padding_low;
        if (h->has_padding && d.findAndGetElement(DCM_PixelPaddingRangeLimit, high).good() && high)
            value(high, &h->padding_high);
        if (h->padding_high < h->padding_low) std::swap(h->padding_low, h->padding_high);
    }
}

/* NumberOfFrames against what is there: the frames that are whole count. */
err_code count_frames(DcmDataset &d, DcmElement &pixels, image_header *h, err *e)
{
    DcmPixelData *p = dynamic_cast<DcmPixelData *>(&pixels);
    DcmPixelSequence *s = nullptr;
    size_t frames = static_cast<size_t>(h->frames), one = native_bytes(h), have;
    if (p && p->getEncapsulatedRepresentation(d.getOriginalXfer(), nullptr, s).good() && s) {
        have = s->card() ? s->card() - 1 : 0; /* at least one fragment a frame; item 0 is the offset table */
        if (have == 0) FAIL(e, TRUNCATED, "DICOM: encapsulated pixel data without a fragment");
    } else {
        size_t bytes = pixels.getLengthField();
        if (one == 0) return ERR_OK;
        if (bytes < one) FAIL(e, TRUNCATED, "DICOM: %zu bytes of pixel data, a frame needs %zu", bytes, one);
        have = bytes / one;
        if (have >= frames && bytes > one * frames + 1) h->quirks |= QUIRK_LONG_PIXEL_DATA;
    }
    if (have < frames) {
        h->quirks |= QUIRK_FRAME_COUNT;
        h->frames = static_cast<int>(have);
    }
    return ERR_OK;
}

} // namespace

extern "C" err_code dicom_read_header(const char *path, image_header *h, err *e)
{
    return guarded(e, [&]() -> err_code {
        DcmFileFormat file;
        TRY(load(file, path, e));
        DcmDataset &d = *file.getDataset();
        text(d, DCM_SpecificCharacterSet, h->character_set);
        text(d, DCM_SOPClassUID, h->sop_class);
        if (!*h->sop_class) text(*file.getMetaInfo(), DCM_MediaStorageSOPClassUID, h->sop_class);
        if (!*h->sop_class) FAIL(e, FORMAT, "DICOM: no SOP Class UID (0008,0016)");
        if (*h->character_set && std::strcmp(h->character_set, "ISO_IR 192") && d.convertToUTF8().bad()) {
            /* A set that cannot be converted: what is not ASCII would be garbage in a report, so it is dropped there
             * (report_sr). */
            std::strcpy(h->character_set, "unknown");
        }
        if (uid_too_long(d, DCM_StudyInstanceUID) || uid_too_long(d, DCM_SeriesInstanceUID) ||
            uid_too_long(d, DCM_SOPInstanceUID))
            FAIL(e, FORMAT, "DICOM: a UID of more than 64 characters");
        text(d, DCM_PatientID, h->patient_id);
        text(d, DCM_IssuerOfPatientID, h->patient_id_issuer);
        text(d, DCM_PatientName, h->patient_name);
        text(d, DCM_PatientBirthDate, h->patient_birth_date);
        text(d, DCM_PatientSex, h->patient_sex);
        text(d, DCM_StudyInstanceUID, h->study_uid);
        text(d, DCM_StudyDate, h->study_date);
        text(d, DCM_StudyTime, h->study_time);
        text(d, DCM_StudyID, h->study_id);
        text(d, DCM_StudyDescription, h->study_description);
        text(d, DCM_AccessionNumber, h->accession);
        text(d, DCM_ReferringPhysicianName, h->referring_physician);
        text(d, DCM_SeriesInstanceUID, h->series_uid);
        text(d, DCM_SOPInstanceUID, h->sop_uid);
        text(d, DCM_Modality, h->modality);
        text(d, DCM_BodyPartExamined, h->body_part);
        text(d, DCM_Manufacturer, h->manufacturer);
        text(d, DCM_ManufacturerModelName, h->manufacturer_model);
        text(d, DCM_ImageType, h->image_type);
        if (DcmItem *p = item(&d, DCM_ProcedureCodeSequence)) {
            text(*p, DCM_CodeValue, h->procedure_code);
            text(*p, DCM_CodingSchemeDesignator, h->procedure_scheme);
            text(*p, DCM_CodeMeaning, h->procedure_meaning);
        }
        char word[17];
        text(d, DCM_BurnedInAnnotation, word);
        h->burned_in = !std::strcmp(word, "YES");
        Sint32 n;
        if (d.findAndGetSint32(DCM_SeriesNumber, n).good()) h->series_number = n;
        if (d.findAndGetSint32(DCM_InstanceNumber, n).good()) h->instance_number = n;
        read_geometry(d, h);
        read_pixels(d, h);
        read_rescale(d, h);
        read_window(d, h);
        read_functional_groups(d, h);
        read_lut(item(&d, DCM_ModalityLUTSequence), h->is_signed, &h->modality_lut);
        read_lut(item(&d, DCM_VOILUTSequence), h->is_signed && !h->has_rescale, &h->voi_lut);
        /* A syntax that the toolkit does not know is parsed as explicit little endian; image.c must see its real name.
         */
        text(*file.getMetaInfo(), DCM_TransferSyntaxUID, h->transfer_syntax);
        if (!*h->transfer_syntax || DcmXfer(h->transfer_syntax).getXfer() != EXS_Unknown)
            std::snprintf(h->transfer_syntax, sizeof h->transfer_syntax, "%s",
                          DcmXfer(d.getOriginalXfer()).getXferID());
        DcmElement *p = nullptr;
        h->has_pixels = d.findAndGetElement(DCM_PixelData, p, OFFalse).good() && p;
        if (!h->has_pixels && (d.tagExists(DCM_FloatPixelData) || d.tagExists(DCM_DoubleFloatPixelData)))
            FAIL(e, UNSUPPORTED, "DICOM: floating-point pixel data");
        if (h->has_pixels) TRY(count_frames(d, *p, h, e));
        return ERR_OK;
    });
}

extern "C" err_code dicom_open(dicom_file **f, const char *path, err *e)
{
    *f = nullptr;
    return guarded(e, [&]() -> err_code {
        std::unique_ptr<dicom_file> d(new dicom_file);
        TRY(load(d->file, path, e));
        *f = d.release();
        return ERR_OK;
    });
}

extern "C" void dicom_close(dicom_file *f)
{
    delete f;
}
