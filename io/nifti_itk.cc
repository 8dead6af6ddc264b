/* nifti_itk.cc: ITK's NiftiImageIO: geometry (sform, qform) and intensity scaling are its business. Sizes are checked
 * against the file before it is allowed to allocate: deflate expands at most 1032-fold. */
#include <itkMetaDataObject.h>
#include <itkNiftiImageIO.h>
#include <zlib.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "base/file.h"
#include "io/nifti_itk.h"

struct nifti_volume {
    size_t columns, rows, slices;
    bool flip_columns, flip_rows;
    std::vector<float> values; /* (slices, rows, columns), file order */
};

namespace
{

constexpr size_t kDeflateMost = 1032, kValuesMost = size_t(1) << 31;

struct geometry {
    size_t dims[3];
    int time_points;
    bool flip_columns, flip_rows;
    double direction[3][3], origin_mm[3]; /* direction[axis]: unit vector of an index axis, LPS */
};

template <class F> err_code guarded(err *e, F body)
{
    try {
        return body();
    } catch (const std::bad_alloc &) {
        FAIL(e, NOMEM, "NIfTI: no memory");
    } catch (...) {
        FAIL(e, FORMAT, "NIfTI: the file cannot be read");
    }
}

/* Axis of the patient (LPS) along which index axis i mostly runs, and its sign. DICOM's habit: columns to +L, rows to
 * +P or to -S. */
bool against_habit(const double direction[3])
{
    size_t k = 0;
    for (size_t i = 1; i < 3; i++)
        if (std::fabs(direction[i]) > std::fabs(direction[k])) k = i;
    return k == 2 ? direction[k] > 0 : direction[k] < 0;
}

/* Both forms may be there and disagree; ITK takes the qform, everybody else (FSL, SPM, nibabel) the sform. */
void orient(itk::NiftiImageIO *io, unsigned n, geometry *g)
{
    std::string code, row[3];
    const itk::MetaDataDictionary &d = io->GetMetaDataDictionary();
    double m[3][4];
    bool sform = itk::ExposeMetaData(d, std::string("sform_code"), code) && std::atoi(code.c_str()) > 0;
    for (int r = 0; sform && r < 3; r++)
        sform = itk::ExposeMetaData(d,
                                    std::string(r == 0   ? "srow_x"
                                                : r == 1 ? "srow_y"
                                                         : "srow_z"),
                                    row[r]) &&
                std::sscanf(row[r].c_str(), "%lf %lf %lf %lf", &m[r][0], &m[r][1], &m[r][2], &m[r][3]) == 4;
    for (unsigned axis = 0; axis < 3; axis++) {
        double length = 0;
        for (unsigned r = 0; sform && r < 3; r++) length += m[r][axis] * m[r][axis];
        sform = sform && length > 0 && std::isfinite(length);
    }
    for (unsigned axis = 0; axis < 3; axis++) {
        std::vector<double> v;
        if (axis < n) v = io->GetDirection(axis);
        for (unsigned r = 0; r < 3; r++) g->direction[axis][r] = r < v.size() ? v[r] : r == axis;
        g->origin_mm[axis] = axis < n ? io->GetOrigin(axis) : 0;
    }
    for (unsigned axis = 0; sform && axis < 3; axis++) {
        double length = std::sqrt(m[0][axis] * m[0][axis] + m[1][axis] * m[1][axis] + m[2][axis] * m[2][axis]);
        for (unsigned r = 0; r < 3; r++)
            g->direction[axis][r] = (r < 2 ? -1 : 1) * m[r][axis] / length; /* RAS to LPS */
    }
    for (unsigned r = 0; sform && r < 3; r++) g->origin_mm[r] = (r < 2 ? -1 : 1) * m[r][3];
}

err_code look(itk::NiftiImageIO *io, const char *path, geometry *g, err *e)
{
    itk::Object::GlobalWarningDisplayOff();
    io->SetFileName(path);
    if (!io->CanReadFile(path)) {
        TRY(file_readable(path, e)); /* not the file's fault: descriptors, permissions */
        FAIL(e, FORMAT, "NIfTI: not a NIfTI file");
    }
    io->ReadImageInformation();
    unsigned n = io->GetNumberOfDimensions();
    if (n < 2 || n > 7) FAIL(e, UNSUPPORTED, "NIfTI: %u dimensions", n);
    if (io->GetNumberOfComponents() != 1) FAIL(e, UNSUPPORTED, "NIfTI: %u values a voxel", io->GetNumberOfComponents());
    size_t values = 1;
    g->time_points = 1;
    for (unsigned i = 0; i < 3; i++) g->dims[i] = i < n ? io->GetDimensions(i) : 1;
    for (unsigned i = 0; i < n; i++) {
        size_t d = io->GetDimensions(i);
        if (d == 0 || d > kValuesMost || values > kValuesMost / d) FAIL(e, LIMIT, "NIfTI: more than 2^31 voxels");
        values *= d;
        if (i >= 3) g->time_points *= static_cast<int>(d);
    }
    if (g->dims[0] > 65535 || g->dims[1] > 65535 || g->dims[2] > 100000)
        FAIL(e, LIMIT, "NIfTI: %zux%zux%zu voxels", g->dims[0], g->dims[1], g->dims[2]);
    orient(io, n, g);
    g->flip_columns = against_habit(g->direction[0]);
    g->flip_rows = against_habit(g->direction[1]);
    return ERR_OK;
}

template <class T> T field(const unsigned char *header, size_t at, bool swapped)
{
    unsigned char b[sizeof(T)];
    T v;
    for (size_t i = 0; i < sizeof b; i++) b[i] = header[at + (swapped ? sizeof b - 1 - i : i)];
    std::memcpy(&v, b, sizeof v);
    return v;
}

/* The NIfTI library fills what is missing with zeros, so the bytes are counted first: those of a plain file, or (whole)
 * by unpacking it. */
err_code count(const char *path, size_t file_bytes, size_t values, bool whole, err *e)
{
    std::unique_ptr<gzFile_s, int (*)(gzFile)> f(gzopen(path, "rb"), gzclose); /* reads plain files too */
    std::vector<unsigned char> b(1 << 17);
    if (!f) FAIL(e, IO, "NIfTI: the file cannot be opened");
    int got = gzread(f.get(), b.data(), 544);
    if (got < 352) FAIL(e, TRUNCATED, "NIfTI: the file ends inside its header");
    bool swapped = b[0] == 0; /* the header's own size, 348 or 540, comes first */
    bool second = field<int32_t>(b.data(), 0, swapped) == 540;
    double offset = second ? static_cast<double>(field<int64_t>(b.data(), 168, swapped))
                           : static_cast<double>(field<float>(b.data(), 108, swapped));
    int bits = second ? field<int16_t>(b.data(), 14, swapped) : field<int16_t>(b.data(), 72, swapped);
    if (!(offset >= 0 && offset < 1e15) || bits < 1 || bits > 256)
        FAIL(e, FORMAT, "NIfTI: voxels of %d bits at an offset that cannot be", bits);
    size_t need = static_cast<size_t>(offset) + values * static_cast<size_t>(bits) / 8, have = static_cast<size_t>(got);
    if (gzdirect(f.get()))
        have = file_bytes;
    else if (!whole)
        have = file_bytes * kDeflateMost;
    else
        while (have < need && (got = gzread(f.get(), b.data(), static_cast<unsigned>(b.size()))) > 0)
            have += static_cast<size_t>(got);
    if (have < need) FAIL(e, TRUNCATED, "NIfTI: %zu bytes needed, %zu there", need, have);
    return ERR_OK;
}

/* The NIfTI library unpacks into memory of its own and does not say when there is none. */
bool has_room(size_t bytes)
{
    void *volatile p = std::malloc(bytes + 1);
    std::free(p);
    return p != nullptr;
}

template <class T> void copy(const std::vector<char> &raw, std::vector<float> &out)
{
    const T *p = reinterpret_cast<const T *>(raw.data());
    for (size_t i = 0; i < out.size(); i++) out[i] = static_cast<float>(p[i]);
}

} // namespace

extern "C" err_code nifti_read_header(const char *path, size_t file_bytes, image_header *h, err *e)
{
    return guarded(e, [&]() -> err_code {
        auto io = itk::NiftiImageIO::New();
        geometry g;
        TRY(look(io, path, &g, e));
        TRY(count(path, file_bytes, g.dims[0] * g.dims[1] * g.dims[2], false, e));
        h->columns = static_cast<int>(g.dims[0]);
        h->rows = static_cast<int>(g.dims[1]);
        h->frames = static_cast<int>(g.dims[2]);
        h->samples = 1;
        h->has_pixels = true;
        h->has_spacing = true;
        h->spacing_mm[0] = io->GetSpacing(1);
        h->spacing_mm[1] = io->GetSpacing(0);
        if (io->GetNumberOfDimensions() > 2) h->slice_spacing_mm = io->GetSpacing(2);
        for (unsigned i = 0; i < 3; i++) h->position_mm[i] = g.origin_mm[i];
        h->has_position = true;
        for (unsigned i = 0; i < 6; i++) h->orientation[i] = g.direction[i / 3][i % 3];
        h->has_orientation = true;
        if (g.time_points > 1) h->quirks |= QUIRK_FOUR_D;
        return ERR_OK;
    });
}

extern "C" err_code nifti_open(nifti_volume **out, const char *path, size_t file_bytes, err *e)
{
    *out = nullptr;
    return guarded(e, [&]() -> err_code {
        auto io = itk::NiftiImageIO::New();
        geometry g;
        TRY(look(io, path, &g, e));
        size_t values = g.dims[0] * g.dims[1] * g.dims[2], size = io->GetComponentSize();
        TRY(count(path, file_bytes, values, true, e));
        itk::ImageIORegion region(io->GetNumberOfDimensions());
        for (unsigned i = 0; i < io->GetNumberOfDimensions(); i++) {
            region.SetIndex(i, 0);
            region.SetSize(i, i < 3 ? io->GetDimensions(i) : 1);
        }
        io->SetIORegion(region);
        std::vector<char> raw(values * size);
        if (!has_room(values * size)) throw std::bad_alloc();
        io->Read(raw.data());
        std::unique_ptr<nifti_volume> v(
            new nifti_volume{g.dims[0], g.dims[1], g.dims[2], g.flip_columns, g.flip_rows, {}});
        v->values.resize(values);
        switch (io->GetComponentType()) {
        case itk::IOComponentEnum::UCHAR:
            copy<unsigned char>(raw, v->values);
            break;
        case itk::IOComponentEnum::CHAR:
            copy<signed char>(raw, v->values);
            break;
        case itk::IOComponentEnum::USHORT:
            copy<unsigned short>(raw, v->values);
            break;
        case itk::IOComponentEnum::SHORT:
            copy<short>(raw, v->values);
            break;
        case itk::IOComponentEnum::UINT:
            copy<unsigned int>(raw, v->values);
            break;
        case itk::IOComponentEnum::INT:
            copy<int>(raw, v->values);
            break;
        case itk::IOComponentEnum::ULONG:
            copy<unsigned long>(raw, v->values);
            break;
        case itk::IOComponentEnum::LONG:
            copy<long>(raw, v->values);
            break;
        case itk::IOComponentEnum::FLOAT:
            copy<float>(raw, v->values);
            break;
        case itk::IOComponentEnum::DOUBLE:
            copy<double>(raw, v->values);
            break;
        default:
            FAIL(e, UNSUPPORTED, "NIfTI: voxel type not supported");
        }
        *out = v.release();
        return ERR_OK;
    });
}

extern "C" void nifti_close(nifti_volume *v)
{
    delete v;
}

extern "C" err_code nifti_frame(const nifti_volume *v, int frame, float *out, size_t count, err *e)
{
    if (frame < 0 || static_cast<size_t>(frame) >= v->slices || count != v->rows * v->columns)
        FAIL(e, INTERNAL, "NIfTI: slice %d of %zu", frame, v->slices);
    const float *in = v->values.data() + static_cast<size_t>(frame) * count;
    for (size_t y = 0; y < v->rows; y++) {
        const float *row = in + (v->flip_rows ? v->rows - 1 - y : y) * v->columns;
        for (size_t x = 0; x < v->columns; x++) out[y * v->columns + x] = row[v->flip_columns ? v->columns - 1 - x : x];
    }
    return ERR_OK;
}
