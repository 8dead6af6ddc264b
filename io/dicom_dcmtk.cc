/* dicom_dcmtk.cc: the only file of io that speaks DCMTK. It copies attributes and bytes and decides nothing: image.c
 * does. DCMTK's own messages are switched off, since they quote values and paths. */
#include "dcmtk/config/osconfig.h"
#include "dcmtk/dcmdata/dcfcache.h"
#include "dcmtk/dcmdata/dcpixel.h"
#include "dcmtk/dcmdata/dcpixseq.h"
#include "dcmtk/dcmdata/dcpxitem.h"
#include "dcmtk/dcmdata/dcrledrg.h"
#include "dcmtk/dcmdata/dcspchrs.h"
#include "dcmtk/dcmdata/dctk.h"
#include "dcmtk/dcmjpeg/djdecode.h"
#include "dcmtk/dcmjpls/djdecode.h"
#include "dcmtk/oflog/oflog.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "io/dicom_dcmtk.h"

struct dicom_file {
    DcmFileFormat file;
    DcmFileCache cache;
};

namespace
{

void set_up()
{
    static std::once_flag once;
    std::call_once(once, [] {
        OFLog::configure(OFLogger::OFF_LOG_LEVEL);
        DJDecoderRegistration::registerCodecs(EDC_photometricInterpretation, EUC_default, EPC_colorByPixel);
        DJLSDecoderRegistration::registerCodecs(EJLSUC_default, EJLSPC_colorByPixel);
        DcmRLEDecoderRegistration::registerCodecs();
    });
}

/* Nothing of C++ leaves this file. */
template <class F> err_code guarded(err *e, F body)
{
    try {
        return body();
    } catch (const std::bad_alloc &) {
        FAIL(e, NOMEM, "DICOM: no memory");
    } catch (...) {
        FAIL(e, INTERNAL, "DICOM: the toolkit threw an exception");
    }
}

err_code load(DcmFileFormat &file, const char *path, err *e)
{
    set_up();
    OFCondition c = file.loadFile(path, EXS_Unknown, EGL_noChange, 1024, ERM_autoDetect);
    if (c.bad()) {
        if (c == EC_StreamNotifyClient || c == EC_InvalidStream || c == EC_EndOfStream)
            FAIL(e, TRUNCATED, "DICOM: the file ends inside an element");
        if (c == EC_MemoryExhausted) FAIL(e, NOMEM, "DICOM: no memory for the header");
        FAIL(e, FORMAT, "DICOM: the header cannot be parsed (condition %04x:%04x)", c.module(), c.code());
    }
    return ERR_OK;
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

int integer(DcmItem &d, const DcmTagKey &tag, int otherwise)
{
    Uint16 u;
    if (d.findAndGetUint16(tag, u).good()) return u;
    return otherwise;
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

/* What a native frame takes, 0 if the header makes no sense: used here only to find truncated pixel data. */
size_t native_bytes(const image_header *h)
{
    size_t cells = static_cast<size_t>(h->rows) * static_cast<size_t>(h->columns) * static_cast<size_t>(h->samples);
    if (h->photometric == PHOTOMETRIC_YBR_FULL_422) cells = cells / 3 * 2;
    return (cells * static_cast<size_t>(h->bits_allocated) + 7) / 8;
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

static bool starts_codestream(DcmPixelItem &k)
{
    unsigned char b[4] = {0, 0, 0, 0};
    if (k.getLength() < sizeof b || k.getPartialValue(b, 0, sizeof b).bad()) return false;
    return (b[0] == 0xFF && b[1] == 0xD8 && b[2] == 0xFF) || (b[0] == 0xFF && b[1] == 0x4F && b[2] == 0xFF) ||
           (b[0] == 0 && b[1] == 0 && b[2] == 0 && b[3] == 12); /* JPEG, JPEG 2000, JP2 */
}

/* Fragments (from 1) of a frame (from 0), PS3.5 A.4: all of them, one each, by the basic offset table, or, where that
 * is empty or wrong, by the codestreams' first bytes. */
static err_code locate(DcmPixelSequence &s, unsigned long frames, unsigned long frame, unsigned long *first,
                       unsigned long *last, err *e)
{
    unsigned long fragments = s.card() ? s.card() - 1 : 0; /* item 0 is the table */
    *first = *last = 0;
    if (frames == 1 && fragments) {
        *first = 1;
        *last = fragments;
        return ERR_OK;
    }
    if (fragments == frames) {
        *first = *last = frame + 1;
        return ERR_OK;
    }
    DcmPixelItem *table = nullptr, *k = nullptr;
    Uint8 *t = nullptr;
    bool usable =
        s.getItem(table, 0).good() && table && table->getLength() == 4 * frames && table->getUint8Array(t).good() && t;
    for (int by_table = usable; by_table >= 0; by_table--) {
        unsigned long begun = 0, from = 0, to = 0;
        size_t at = 0;
        for (unsigned long i = 1; i <= fragments; i++) {
            if (s.getItem(k, i).bad() || !k) FAIL(e, TRUNCATED, "DICOM: fragment %lu cannot be read", i);
            bool begins;
            if (by_table) {
                const Uint8 *o = t + 4 * (begun < frames ? begun : 0);
                begins = begun < frames && at == (o[0] | static_cast<size_t>(o[1]) << 8 |
                                                  static_cast<size_t>(o[2]) << 16 | static_cast<size_t>(o[3]) << 24);
            } else
                begins = starts_codestream(*k);
            if (begins) begun++;
            if (begins && begun == frame + 1) from = i;
            if (begun == frame + 1) to = i;
            at += 8 + k->getLength();
        }
        if (begun != frames) continue;
        *first = from;
        *last = to;
        return ERR_OK;
    }
    FAIL(e, UNSUPPORTED, "DICOM: %lu fragments for %lu frames, and no offset table that fits", fragments, frames);
}

static DcmPixelData *pixel_data(dicom_file *f)
{
    DcmElement *p = nullptr;
    return f->file.getDataset()->findAndGetElement(DCM_PixelData, p, OFFalse).good() ? dynamic_cast<DcmPixelData *>(p)
                                                                                     : nullptr;
}

extern "C" err_code dicom_frame(dicom_file *f, const image_header *h, int frame, void *out, size_t bytes,
                                bool *decoded_rgb, err *e)
{
    *decoded_rgb = false;
    return guarded(e, [&]() -> err_code {
        DcmPixelData *p = pixel_data(f);
        if (!p) FAIL(e, FORMAT, "DICOM: no pixel data (7FE0,0010)");
        DcmDataset *d = f->file.getDataset();
        DcmXfer syntax(d->getOriginalXfer());
        if (!syntax.isEncapsulated()) {
            size_t size = native_bytes(h), at = size * static_cast<size_t>(frame);
            if (size > bytes || at + size > p->getLengthField())
                FAIL(e, TRUNCATED, "DICOM: frame %d ends behind the pixel data", frame + 1);
            /* In cells of 8 bits in OW words the toolkit counts words: an odd offset would swap wrongly, so it is read
             * from the even one. */
            size_t odd = at & 1;
            std::unique_ptr<char[]> even(odd ? new char[size + 1] : nullptr);
            OFCondition c = p->getPartialValue(odd ? even.get() : out, static_cast<Uint32>(at - odd),
                                               static_cast<Uint32>(size + odd), &f->cache);
            if (c.bad()) FAIL(e, TRUNCATED, "DICOM: the pixel data of frame %d cannot be read", frame + 1);
            if (odd) std::memcpy(out, even.get() + 1, size);
            /* Big endian OW: the toolkit swaps words of 16 bits, so the halves of a 32-bit cell are still in file
             * order. */
            if (h->bits_allocated == 32 && syntax.getByteOrder() == EBO_BigEndian)
                for (unsigned char *k = static_cast<unsigned char *>(out), *stop = k + size / 4 * 4; k < stop; k += 4) {
                    std::swap(k[0], k[2]);
                    std::swap(k[1], k[3]);
                }
            return ERR_OK;
        }
        Uint32 start = 0; /* the toolkit finds it where every frame is one fragment */
        DcmPixelSequence *sequence = nullptr;
        if (h->frames > 1 && p->getEncapsulatedRepresentation(d->getOriginalXfer(), nullptr, sequence).good() &&
            sequence) {
            unsigned long first = 0, last = 0;
            TRY(locate(*sequence, static_cast<unsigned long>(h->frames), static_cast<unsigned long>(frame), &first,
                       &last, e));
            start = static_cast<Uint32>(first);
        }
        OFString model;
        std::memset(out, 0, bytes);
        OFCondition c = p->getUncompressedFrame(d, static_cast<Uint32>(frame), start, out, static_cast<Uint32>(bytes),
                                                model, &f->cache);
        if (c.bad()) {
            if (c == EC_CannotChangeRepresentation || c == EC_UnsupportedEncoding)
                FAIL(e, UNSUPPORTED, "DICOM: this compression or pixel layout is not supported");
            FAIL(e, FORMAT, "DICOM: frame %d cannot be decompressed (condition %04x:%04x)", frame + 1, c.module(),
                 c.code());
        }
        *decoded_rgb = model == "RGB" && h->photometric != PHOTOMETRIC_RGB;
        return ERR_OK;
    });
}

extern "C" err_code dicom_codestream(dicom_file *f, const image_header *h, int frame, unsigned char **out,
                                     size_t *bytes, err *e)
{
    *out = nullptr;
    return guarded(e, [&]() -> err_code {
        DcmPixelData *p = pixel_data(f);
        DcmPixelSequence *s = nullptr;
        if (!p || p->getEncapsulatedRepresentation(f->file.getDataset()->getOriginalXfer(), nullptr, s).bad() || !s)
            FAIL(e, FORMAT, "DICOM: no encapsulated pixel data");
        unsigned long first = 0, last = 0;
        TRY(locate(*s, static_cast<unsigned long>(h->frames), static_cast<unsigned long>(frame), &first, &last, e));
        size_t total = 0;
        for (unsigned long i = first; i <= last; i++) {
            DcmPixelItem *k = nullptr;
            if (s->getItem(k, i).good() && k) total += k->getLength();
        }
        std::unique_ptr<unsigned char, void (*)(void *)> all(static_cast<unsigned char *>(std::malloc(total + 1)),
                                                             std::free);
        if (!all) throw std::bad_alloc();
        size_t at = 0;
        for (unsigned long i = first; i <= last; i++) {
            DcmPixelItem *k = nullptr;
            Uint8 *data = nullptr;
            if (s->getItem(k, i).bad() || !k || k->getUint8Array(data).bad() || (!data && k->getLength()))
                FAIL(e, TRUNCATED, "DICOM: fragment %lu cannot be read", i);
            if (data) std::memcpy(all.get() + at, data, k->getLength());
            at += k->getLength();
        }
        *bytes = at;
        *out = all.release();
        return ERR_OK;
    });
}

/* PS3.3 C.7.9.2: discrete (0), linear (1) and indirect (2) segments, 16-bit entries; no more than limit entries. */
static bool expand_segments(const Uint16 *w, size_t n, size_t limit, std::vector<Uint16> &out, bool inner,
                            size_t most = SIZE_MAX, size_t from = 0)
{
    size_t at = from;
    for (size_t done = 0; at + 2 <= n && done < most; done++) {
        size_t op = w[at], length = w[at + 1];
        at += 2;
        if (op == 0) {
            if (length > n - at || length > limit - out.size()) return false;
            out.insert(out.end(), w + at, w + at + length);
            at += length;
        } else if (op == 1) {
            if (at >= n || out.empty() || length == 0 || length > limit - out.size()) return false;
            double y0 = out.back(), y1 = w[at++];
            for (size_t i = 1; i <= length; i++)
                out.push_back(
                    static_cast<Uint16>(y0 + (y1 - y0) * static_cast<double>(i) / static_cast<double>(length) + 0.5));
        } else if (op == 2) {
            if (inner || n - at < 2) return false; /* an indirect segment may not point to another */
            size_t offset = (w[at] | static_cast<size_t>(w[at + 1]) << 16) / 2; /* bytes from the start of the data */
            at += 2;
            if (offset >= n || !expand_segments(w, n, limit, out, true, length, offset)) return false;
        } else
            return false;
    }
    return true;
}

extern "C" err_code dicom_read_palette(dicom_file *f, dicom_palette *out, err *e)
{
    const DcmTagKey descriptor[] = {DCM_RedPaletteColorLookupTableDescriptor,
                                    DCM_GreenPaletteColorLookupTableDescriptor,
                                    DCM_BluePaletteColorLookupTableDescriptor};
    const DcmTagKey data[] = {DCM_RedPaletteColorLookupTableData, DCM_GreenPaletteColorLookupTableData,
                              DCM_BluePaletteColorLookupTableData};
    const DcmTagKey segments[] = {DCM_SegmentedRedPaletteColorLookupTableData,
                                  DCM_SegmentedGreenPaletteColorLookupTableData,
                                  DCM_SegmentedBluePaletteColorLookupTableData};
    std::memset(out, 0, sizeof *out);
    err_code rc = guarded(e, [&]() -> err_code {
        DcmDataset &d = *f->file.getDataset();
        for (int c = 0; c < 3; c++) {
            DcmElement *el = nullptr;
            long v[3];
            if (d.findAndGetElement(descriptor[c], el).bad() || !el)
                FAIL(e, FORMAT, "DICOM: palette image without a palette descriptor");
            for (unsigned long i = 0; i < 3; i++) {
                Uint16 u;
                Sint16 s;
                if (el->getUint16(u, i).good())
                    v[i] = i == 1 && integer(d, DCM_PixelRepresentation, 0) == 1 ? static_cast<Sint16>(u) : u;
                else if (el->getSint16(s, i).good())
                    v[i] = i == 1 ? s : static_cast<Uint16>(s);
                else
                    FAIL(e, FORMAT, "DICOM: malformed palette descriptor");
            }
            long entries = v[0] ? v[0] : 65536;
            const Uint16 *words = nullptr;
            unsigned long count = 0;
            std::vector<Uint16> expanded;
            if (d.findAndGetUint16Array(data[c], words, &count).bad() || !words) {
                if (d.findAndGetUint16Array(segments[c], words, &count).bad() || !words)
                    FAIL(e, FORMAT, "DICOM: palette image without palette data");
                if (v[2] != 16 || !expand_segments(words, count, static_cast<size_t>(entries), expanded, false))
                    FAIL(e, FORMAT, "DICOM: segmented palette data is malformed");
                words = expanded.data();
                count = expanded.size();
            }
            bool packed = v[2] == 8 && static_cast<long>(count) * 2 >= entries && static_cast<long>(count) < entries;
            if (!packed && static_cast<long>(count) < entries)
                FAIL(e, TRUNCATED, "DICOM: palette data shorter than its descriptor");
            out->first[c] = static_cast<int>(v[1]);
            out->entries[c] = static_cast<int>(entries);
            out->entry[c] = static_cast<unsigned char *>(std::malloc(static_cast<size_t>(entries)));
            if (!out->entry[c]) throw std::bad_alloc();
            bool wide = false; /* 16-bit entries that use the upper byte */
            for (long i = 0; !packed && i < entries; i++) wide = wide || words[i] > 255;
            for (long i = 0; i < entries; i++) {
                unsigned value = packed ? (words[i / 2] >> (i & 1 ? 8 : 0)) & 255u : wide ? words[i] >> 8 : words[i];
                out->entry[c][i] = static_cast<unsigned char>(value);
            }
        }
        return ERR_OK;
    });
    if (rc) dicom_palette_fini(out);
    return rc;
}

extern "C" void dicom_palette_fini(dicom_palette *p)
{
    for (unsigned char *&c : p->entry) {
        std::free(c);
        c = nullptr;
    }
}
