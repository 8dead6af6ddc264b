"""read_report.py FILE NAME EVIDENCE FINDINGS PROBABILITIES: an independent reader's view of one report (pydicom).

Exits with a message unless the patient's name is NAME, the findings' meanings are FINDINGS ("a|b") with PROBABILITIES
("0.7|0.6", "" for none), and the source images of each are EVIDENCE, as "uid:frame,uid:frame" (frame 0: none given), in
that order."""
import sys

import pydicom


def code(sequence):
    return sequence[0].CodeValue, sequence[0].CodingSchemeDesignator


def walk(item, depth=0):
    yield depth, item
    for child in item.get("ContentSequence", []):
        yield from walk(child, depth + 1)


def main():
    path, name, evidence, findings, probabilities = sys.argv[1:]
    d = pydicom.dcmread(path)
    assert d.file_meta.MediaStorageSOPInstanceUID == d.SOPInstanceUID
    assert str(d.PatientName) == name, "name"
    assert d.get("SpecificCharacterSet", "ISO_IR 192") == "ISO_IR 192" and d.Modality == "SR" and d.StudyInstanceUID
    items = [i for _, i in walk(d)]
    groups = [i for i in items if "ConceptNameCodeSequence" in i and code(i.ConceptNameCodeSequence) == ("125007", "DCM")]
    meanings, measured = [], []
    for g in groups:
        of = lambda c: [i for i in g.ContentSequence if code(i.ConceptNameCodeSequence) == (c, "DCM")]
        meanings += [i.ConceptCodeSequence[0].CodeMeaning for i in of("121071")]
        values = [i.MeasuredValueSequence[0] for i in of("122157")]
        assert all(code(v.MeasurementUnitsCodeSequence) == ("1", "UCUM") for v in values), "units"
        measured += ["%.4f" % v.NumericValue for v in values]
        assert "esearch use only" in of("121106")[0].TextValue, "comment"
        sources = [i.ReferencedSOPSequence[0] for i in of("121112")]
        got = ",".join("%s:%d" % (s.ReferencedSOPInstanceUID, s.get("ReferencedFrameNumber", 0)) for s in sources)
        assert got == (evidence if values else ""), "source images"
    assert "|".join(meanings) == findings, "findings"
    assert "|".join(measured) == probabilities, "probabilities"
    assert len({code(g.ContentSequence[1].ConceptNameCodeSequence) + (g.ContentSequence[1].UID,) for g in groups}) == len(groups)
    used = {i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in items if i.ValueType == "IMAGE"}
    listed = {r.ReferencedSOPInstanceUID for s in d.CurrentRequestedProcedureEvidenceSequence
              for e in s.ReferencedSeriesSequence for r in e.ReferencedSOPSequence}
    assert used == listed, "evidence"


main()
