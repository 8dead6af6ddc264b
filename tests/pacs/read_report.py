"""read_report.py FILE NAME EVIDENCE FINDING: an independent reader's view of one report (pydicom).

Exits with a message unless the patient's name is NAME, the finding's meaning is FINDING, and the source images are
EVIDENCE, as "uid:frame,uid:frame" (frame 0: none given), in that order."""
import sys

import pydicom


def code(sequence):
    return sequence[0].CodeValue, sequence[0].CodingSchemeDesignator


def walk(item, depth=0):
    yield depth, item
    for child in item.get("ContentSequence", []):
        yield from walk(child, depth + 1)


def main():
    path, name, evidence, finding = sys.argv[1:]
    d = pydicom.dcmread(path)
    assert d.file_meta.MediaStorageSOPInstanceUID == d.SOPInstanceUID
    assert str(d.PatientName) == name, "name"
    assert d.get("SpecificCharacterSet", "ISO_IR 192") == "ISO_IR 192" and d.Modality == "SR" and d.StudyInstanceUID
    items = [i for _, i in walk(d)]
    concepts = {code(i.ConceptNameCodeSequence): i for i in items if "ConceptNameCodeSequence" in i}
    found = [i for i in items if "ConceptNameCodeSequence" in i and code(i.ConceptNameCodeSequence) == ("121071", "DCM")]
    assert len(found) == 1, "exactly one finding"
    assert found[0].ConceptCodeSequence[0].CodeMeaning == finding, "finding"
    measured = concepts["122157", "DCM"].MeasuredValueSequence[0]
    assert measured.NumericValue == 0.8438 and code(measured.MeasurementUnitsCodeSequence) == ("1", "UCUM")
    assert "esearch use only" in concepts["121106", "DCM"].TextValue
    sources = [i.ReferencedSOPSequence[0] for i in items if "ConceptNameCodeSequence" in i
               and code(i.ConceptNameCodeSequence) == ("121112", "DCM")]
    got = ",".join("%s:%d" % (s.ReferencedSOPInstanceUID, s.get("ReferencedFrameNumber", 0)) for s in sources)
    assert got == evidence, "source images"
    used = {i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in items if i.ValueType == "IMAGE"}
    listed = {r.ReferencedSOPInstanceUID for s in d.CurrentRequestedProcedureEvidenceSequence
              for e in s.ReferencedSeriesSequence for r in e.ReferencedSOPSequence}
    assert used == listed, "evidence"


main()
