// sr_tree_dcmtk.cc: see sr_tree.h. DCMTK's messages quote values, so its log is off; its texts never reach err.
#include "pacs/sr_tree.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "base/file.h"

#include "dcmtk/config/osconfig.h"
#include "dcmtk/dcmdata/dcistrmf.h"
#include "dcmtk/dcmdata/dcostrmb.h"
#include "dcmtk/dcmdata/dctk.h"
#include "dcmtk/oflog/oflog.h"

namespace
{

#define FAIL_AS(code, ...) return err_set(e, code, __FILE__, __LINE__, __VA_ARGS__)

void silence()
{
    static bool done = (OFLog::configure(OFLogger::OFF_LOG_LEVEL), true);
    (void)done;
}

DcmTag tag_of(const attribute &a)
{
    return DcmTag(DcmTagKey(Uint16(a.tag >> 16), Uint16(a.tag & 0xFFFF)), DcmVR(a.vr));
}

err_code encode_set(const attributes *from, DcmItem &to, err *e)
{
    for (size_t i = 0; i < from->n; i++) {
        const attribute &a = from->elements[i];
        const DcmTag tag = tag_of(a);
        OFCondition made;
        if (a.text) {
            made = to.putAndInsertString(tag, a.text);
        } else {
            DcmSequenceOfItems *sequence = new DcmSequenceOfItems(tag);
            made = to.insert(sequence, OFTrue);
            if (made.bad()) delete sequence;
            for (size_t k = 0; k < a.n_items && made.good(); k++) {
                DcmItem *item = new DcmItem;
                made = sequence->append(item);
                if (made.bad()) {
                    delete item;
                    break;
                }
                const err_code rc = encode_set(a.items[k], *item, e);
                if (rc) return rc;
            }
        }
        if (made.bad()) FAIL_AS(ERR_INTERNAL, "report: attribute (%04X,%04X) refused", a.tag >> 16, a.tag & 0xFFFF);
    }
    return ERR_OK;
}

err_code encode(const attributes *d, std::string &out, err *e)
{
    DcmFileFormat file;
    const err_code rc = encode_set(d, *file.getDataset(), e);
    if (rc) return rc;
    std::string buffer(1 << 16, 0);
    DcmOutputBufferStream stream(&buffer[0], offile_off_t(buffer.size()));
    file.transferInit();
    OFCondition written;
    do {
        written = file.write(stream, EXS_LittleEndianExplicit, EET_ExplicitLength, nullptr, EGL_withoutGL, EPD_noChange,
                             0, 0, 0, EWM_createNewMeta);
        void *part = nullptr;
        offile_off_t bytes = 0;
        stream.flushBuffer(part, bytes);
        out.append(static_cast<const char *>(part), size_t(bytes));
    } while (written == EC_StreamNotifyClient);
    file.transferEnd();
    if (written.bad()) FAIL_AS(ERR_INTERNAL, "report: could not be encoded");
    return ERR_OK;
}

err_code decode_set(DcmItem &from, attributes *to, int depth, err *e)
{
    if (depth > SR_TREE_DEPTH_MAX) FAIL_AS(ERR_LIMIT, "report: sequences nested deeper than %d", SR_TREE_DEPTH_MAX);
    for (unsigned long i = 0; i < from.card(); i++) {
        DcmElement *element = from.getElement(i);
        const uint32_t tag = uint32_t(element->getGTag()) << 16 | element->getETag();
        if (element->ident() == EVR_SQ) {
            DcmSequenceOfItems *sequence = static_cast<DcmSequenceOfItems *>(element);
            attributes_sequence(to, tag);
            for (unsigned long k = 0; k < sequence->card(); k++) {
                const err_code rc = decode_set(*sequence->getItem(k), attributes_item(to, tag), depth + 1, e);
                if (rc) return rc;
            }
        } else if (element->isaString()) {
            OFString text;
            if (element->getOFStringArray(text).bad()) FAIL_AS(ERR_FORMAT, "report: an attribute cannot be read");
            attributes_put_raw(to, tag, DcmVR(element->ident()).getVRName(), text.c_str());
        }
    }
    return ERR_OK;
}

err_code decode(const char *path, attributes *d, err *e)
{
    file_map m;
    err_code rc = file_map_open(&m, path, e);
    if (rc) return rc;
    const size_t bytes = m.bytes;
    file_map_close(&m);
    if (bytes > SR_TREE_BYTES_MAX)
        FAIL_AS(ERR_LIMIT, "report: %zu bytes, at most %d are read", bytes, SR_TREE_BYTES_MAX);
    DcmFileFormat file;
    if (file.loadFile(path, EXS_Unknown, EGL_noChange, DCM_MaxReadLength, ERM_fileOnly).bad())
        FAIL_AS(ERR_FORMAT, "report: not a whole DICOM file");
    return decode_set(*file.getDataset(), d, 0, e);
}

} // namespace

err_code sr_tree_encode(const attributes *d, unsigned char **bytes, size_t *n, err *e)
{
    try {
        silence();
        if (attributes_failed(d)) FAIL_AS(ERR_NOMEM, "report: no memory");
        std::string out;
        const err_code rc = encode(d, out, e);
        if (rc) return rc;
        void *copy = std::malloc(out.size());
        if (!copy) FAIL_AS(ERR_NOMEM, "report: no memory for %zu bytes", out.size());
        std::memcpy(copy, out.data(), out.size());
        *bytes = static_cast<unsigned char *>(copy);
        *n = out.size();
        return ERR_OK;
    } catch (const std::bad_alloc &) {
        FAIL_AS(ERR_NOMEM, "report: no memory");
    } catch (...) {
        FAIL_AS(ERR_INTERNAL, "report: the DICOM library failed");
    }
}

err_code sr_tree_read(const char *path, attributes **d, err *e)
{
    attributes *read = nullptr;
    err_code rc;
    try {
        silence();
        read = attributes_new();
        rc = read ? decode(path, read, e) : ERR_OK;
        if (!rc && attributes_failed(read)) rc = err_set(e, ERR_NOMEM, __FILE__, __LINE__, "report: no memory");
    } catch (const std::bad_alloc &) {
        rc = err_set(e, ERR_NOMEM, __FILE__, __LINE__, "report: no memory");
    } catch (...) {
        rc = err_set(e, ERR_INTERNAL, __FILE__, __LINE__, "report: the DICOM library failed");
    }
    if (rc)
        attributes_free(read);
    else
        *d = read;
    return rc;
}
