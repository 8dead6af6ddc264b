/* dicom_frame_dcmtk.cc: pixel data through DCMTK: native frames, frames that its codecs decompress, codestreams for
 * others' decoders, palettes. */
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "io/dicom_file_dcmtk.h"

using namespace dicom_detail;

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
            if (c == EC_MemoryExhausted || std::strstr(c.text(), "nsufficient memory")) /* libjpeg's words */
                FAIL(e, NOMEM, "DICOM: no memory to decompress frame %d", frame + 1);
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
