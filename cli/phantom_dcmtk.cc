/* phantom_dcmtk.cc: see phantom_dcmtk.h. DCMTK compresses RLE, JPEG and JPEG-LS; a JPEG 2000 codestream is put in as it
 * is. Nothing written depends on the time. */
#include "cli/phantom_dcmtk.h"

#include <dcmtk/config/osconfig.h>
#include <dcmtk/dcmdata/dcpixseq.h>
#include <dcmtk/dcmdata/dcpxitem.h>
#include <dcmtk/dcmdata/dcrledrg.h>
#include <dcmtk/dcmdata/dcrleerg.h>
#include <dcmtk/dcmdata/dctk.h>
#include <dcmtk/dcmjpeg/djencode.h>
#include <dcmtk/dcmjpls/djencode.h>

#include <cstdlib>
#include <memory>
#include <mutex>

namespace
{
E_TransferSyntax transfer_syntax(phantom_syntax s)
{
    switch (s) {
    case PHANTOM_IMPLICIT:
    case PHANTOM_BARE:
        return EXS_LittleEndianImplicit;
    case PHANTOM_BIG_ENDIAN:
        return EXS_BigEndianExplicit;
    case PHANTOM_DEFLATED:
        return EXS_DeflatedLittleEndianExplicit;
    case PHANTOM_RLE:
        return EXS_RLELossless;
    case PHANTOM_JPEG_LOSSLESS:
        return EXS_JPEGProcess14SV1;
    case PHANTOM_JPEG_LS:
        return EXS_JPEGLSLossless;
    case PHANTOM_J2K:
        return EXS_JPEG2000LosslessOnly;
    default:
        return EXS_LittleEndianExplicit;
    }
}

void register_encoders()
{
    static std::once_flag once;
    std::call_once(once, [] {
        OFLog::configure(OFLogger::OFF_LOG_LEVEL);
        DcmRLEEncoderRegistration::registerCodecs();
        DJEncoderRegistration::registerCodecs();
        DJLSEncoderRegistration::registerCodecs();
    });
}

OFCondition put_pixels(DcmDataset *d, const phantom_pixels &p)
{
    const size_t count = static_cast<size_t>(p.rows) * static_cast<size_t>(p.columns);
    OFCondition good = d->putAndInsertUint16(DCM_SamplesPerPixel, 1);
    if (good.good())
        good = d->putAndInsertString(DCM_PhotometricInterpretation, p.inverted ? "MONOCHROME1" : "MONOCHROME2");
    if (good.good()) good = d->putAndInsertUint16(DCM_Rows, static_cast<Uint16>(p.rows));
    if (good.good()) good = d->putAndInsertUint16(DCM_Columns, static_cast<Uint16>(p.columns));
    if (good.good()) good = d->putAndInsertUint16(DCM_BitsAllocated, 16);
    if (good.good()) good = d->putAndInsertUint16(DCM_BitsStored, static_cast<Uint16>(p.bits_stored));
    if (good.good()) good = d->putAndInsertUint16(DCM_HighBit, static_cast<Uint16>(p.bits_stored - 1));
    if (good.good()) good = d->putAndInsertUint16(DCM_PixelRepresentation, p.is_signed ? 1 : 0);
    if (good.good()) good = d->putAndInsertUint16Array(DCM_PixelData, p.values, static_cast<unsigned long>(count));
    return good;
}

/* Replaces the native pixels by one codestream in one fragment. */
err_code put_codestream(DcmDataset *d, const phantom_pixels &p, err *e)
{
    unsigned char *stream = nullptr;
    size_t bytes = 0;
    TRY(phantom_j2k_encode(&p, &stream, &bytes, e));
    std::unique_ptr<unsigned char, decltype(&std::free)> owned(stream, std::free);
    auto sequence = std::make_unique<DcmPixelSequence>(DCM_PixelSequenceTag);
    sequence->insert(new DcmPixelItem(DCM_PixelItemTag)); /* an empty offset table */
    DcmOffsetList offsets;
    if (sequence->storeCompressedFrame(offsets, stream, static_cast<Uint32>(bytes), 0).bad())
        FAIL(e, INTERNAL, "phantom: cannot store a codestream");
    auto pixels = std::make_unique<DcmPixelData>(DCM_PixelData);
    pixels->putOriginalRepresentation(EXS_JPEG2000LosslessOnly, nullptr, sequence.release());
    if (d->insert(pixels.get(), true).bad()) FAIL(e, INTERNAL, "phantom: cannot store the pixels");
    pixels.release();
    return ERR_OK;
}

err_code write(const char *path, const phantom_attribute *a, size_t n, const phantom_pixels *p, phantom_syntax syntax,
               err *e)
{
    register_encoders();
    DcmFileFormat file;
    DcmDataset *d = file.getDataset();
    for (size_t i = 0; i < n; i++) {
        const DcmTag tag(static_cast<Uint16>(a[i].tag >> 16), static_cast<Uint16>(a[i].tag & 0xffff));
        if (d->putAndInsertString(tag, a[i].text).bad()) FAIL(e, INTERNAL, "phantom: attribute %08x", a[i].tag);
    }
    if (p && put_pixels(d, *p).bad()) FAIL(e, INTERNAL, "phantom: cannot store the pixels");
    const E_TransferSyntax xfer = transfer_syntax(syntax);
    if (p && syntax == PHANTOM_J2K)
        TRY(put_codestream(d, *p, e));
    else if (DcmXfer(xfer).isEncapsulated() && d->chooseRepresentation(xfer, nullptr).bad())
        FAIL(e, INTERNAL, "phantom: no encoder for this transfer syntax");
    const OFCondition saved = file.saveFile(path, xfer, EET_ExplicitLength, EGL_recalcGL, EPD_noChange, 0, 0,
                                            syntax == PHANTOM_BARE ? EWM_dataset : EWM_fileformat);
    if (saved.bad()) FAIL(e, IO, "phantom: a file cannot be written");
    return ERR_OK;
}
} // namespace

err_code phantom_dcmtk_write(const char *path, const phantom_attribute *a, size_t n, const phantom_pixels *pixels,
                             phantom_syntax syntax, err *e)
{
    try {
        return write(path, a, n, pixels, syntax, e);
    } catch (const std::bad_alloc &) {
        FAIL(e, NOMEM, "phantom: no memory");
    } catch (...) {
        FAIL(e, INTERNAL, "phantom: DCMTK failed");
    }
}
