/* dicom_file_dcmtk.h: what the two DCMTK files of io share (C++, for them alone). */
#ifndef RADAPT_DICOM_FILE_DCMTK_H
#define RADAPT_DICOM_FILE_DCMTK_H
#include "dcmtk/config/osconfig.h"
#include "dcmtk/dcmdata/dcfcache.h"
#include "dcmtk/dcmdata/dcpixel.h"
#include "dcmtk/dcmdata/dcpixseq.h"
#include "dcmtk/dcmdata/dcpxitem.h"
#include "dcmtk/dcmdata/dctk.h"

#include <memory>
#include <new>

#include "io/dicom_dcmtk.h"

struct dicom_file {
    DcmFileFormat file;
    DcmFileCache cache;
};

namespace dicom_detail
{

/* Nothing of C++ leaves these files. */
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

inline int integer(DcmItem &d, const DcmTagKey &tag, int otherwise)
{
    Uint16 u;
    if (d.findAndGetUint16(tag, u).good()) return u;
    return otherwise;
}

/* What a native frame takes, 0 if the header makes no sense. */
inline size_t native_bytes(const image_header *h)
{
    size_t cells = static_cast<size_t>(h->rows) * static_cast<size_t>(h->columns) * static_cast<size_t>(h->samples);
    if (h->photometric == PHOTOMETRIC_YBR_FULL_422) cells = cells / 3 * 2;
    return (cells * static_cast<size_t>(h->bits_allocated) + 7) / 8;
}

} // namespace dicom_detail

#endif
