#!/usr/bin/python3
"""Makes pixels.tsv: what other readers find in sample files, for tests/io/test_decode_values.c.

    /usr/bin/python3 tests/golden/pixels.py [SHARED] > tests/golden/pixels.tsv

DICOM through pydicom (with numpy, its own RLE, GDCM and Pillow behind it), NIfTI through numpy alone; packages python3-pydicom,
python3-gdcm, python3-pil, mricron-data. SHARED: a folder with more sample files (dicom/, nifti/), tested where it is there.
Columns: root, file, frames, rows, columns, samples, the first frame, the last one (NIfTI: the middle one). A frame is the SHA-256 of its int32 (NIfTI: float32) little-endian
values, row-major, samples interleaved, or "mean" where two decoders need not agree to the last bit (lossy compression).
"""
import gzip, hashlib, logging, os, sys, warnings

import numpy as np
import pydicom
from pydicom.pixel_data_handlers import util

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
ROOTS = {"pydicom": "/usr/lib/python3/dist-packages/pydicom/data/test_files", "mricron": "/usr/share/mricron/templates"}
LOSSY = {"1.2.840.10008.1.2.4." + k for k in ("50", "51", "81", "91")}
# Where the judge is known to be wrong: it takes no notice of BitsStored (values above it), or misreads 8-bit palettes in big endian.
NOT_JUDGED = {"JLSL_16_15_1_1F.dcm", "mlut_18.dcm", "OBXXXX1A_expb.dcm", "OBXXXX1A_expb_2frame.dcm"}
# What we set aside: a codestream header with nonsense in it, a data set in another encoding than it says, JPEG-LS of 7 bits.
NOT_JUDGED |= {"JPEG2000-embedded-sequence-delimiter.dcm", "SC_rgb_jpeg.dcm", "JLSL_08_07_0_1F.dcm"}


def dicom(path):
    for handler in ("numpy", "rle", "gdcm", "pillow"):
        ds = pydicom.dcmread(path, force=True)
        if "PixelData" not in ds or ds.BitsAllocated == 1:
            return None
        try:
            ds.convert_pixel_data(handler)
            break
        except Exception:
            ds = None
    if ds is None:
        return None
    frames = int(ds.get("NumberOfFrames", 1) or 1)
    a = ds._pixel_array.reshape((frames, ds.Rows, ds.Columns, ds.SamplesPerPixel))
    out = []
    for i in (0, frames - 1):
        f = a[i]
        if ds.PhotometricInterpretation == "PALETTE COLOR":
            f = util.apply_color_lut(f[..., 0], ds)
            f = f >> 8 if f.dtype == np.uint16 else f
        elif ds.SamplesPerPixel == 3 and ds.BitsAllocated == 8 and ds.PhotometricInterpretation.startswith("YBR_FULL"):
            f = util.convert_color_space(f, ds.PhotometricInterpretation, "RGB")
        elif ds.SamplesPerPixel == 3 and ds.BitsAllocated == 16:
            f = f >> max(ds.BitsStored - 8, 0)
        elif ds.BitsAllocated > 16 or ds.SamplesPerPixel == 3 and ds.BitsAllocated > 8:
            return None
        out.append(f.astype("<i4"))
    return frames, out, ds.file_meta.TransferSyntaxUID in LOSSY


def affine(h):
    """The 3x3 part of voxel to RAS: sform, else qform, as nifti1.h has it."""
    if h["sform_code"] > 0:
        return np.array([h["srow_x"][:3], h["srow_y"][:3], h["srow_z"][:3]], float)
    if h["qform_code"] > 0:
        b, c, d = (float(h[k]) for k in ("quatern_b", "quatern_c", "quatern_d"))
        a = max(1 - b * b - c * c - d * d, 0) ** 0.5
        r = np.array([[a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                      [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                      [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c]])
        r[:, 2] *= -1 if h["pixdim"][0] < 0 else 1
        return r * np.array(h["pixdim"][1:4], float)
    return np.diag(np.array(h["pixdim"][1:4], float))


def nifti(path):
    raw = (gzip.open if path.endswith(".gz") else open)(path, "rb").read()
    if len(raw) < 352 or raw[344:348] != b"n+1\0":
        return None
    for order in "<>":
        kind = np.dtype([("sizeof_hdr", order + "i4"), ("skip1", "S36"), ("dim", order + "i2", 8), ("skip2", "S14"),
                         ("datatype", order + "i2"), ("bitpix", order + "i2"), ("slice_start", order + "i2"),
                         ("pixdim", order + "f4", 8), ("vox_offset", order + "f4"), ("scl_slope", order + "f4"),
                         ("scl_inter", order + "f4"), ("skip3", "S132"), ("qform_code", order + "i2"),
                         ("sform_code", order + "i2"), ("quatern_b", order + "f4"), ("quatern_c", order + "f4"),
                         ("quatern_d", order + "f4"), ("qoffset", order + "f4", 3), ("srow_x", order + "f4", 4),
                         ("srow_y", order + "f4", 4), ("srow_z", order + "f4", 4)])
        h = np.frombuffer(raw, kind, 1)[0]
        if h["sizeof_hdr"] == 348:
            break
    types = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
    if int(h["datatype"]) not in types or h["dim"][0] < 3:
        return None
    nx, ny, nz = (int(v) for v in h["dim"][1:4])
    v = np.frombuffer(raw, order + types[int(h["datatype"])], nx * ny * nz, int(h["vox_offset"])).reshape(nz, ny, nx)
    slope, inter = float(h["scl_slope"]), float(h["scl_inter"])
    v = v.astype("f8")
    if slope not in (0.0, 1.0) or (slope == 1.0 and inter):
        v = v * slope + inter
    v = np.nan_to_num(v, nan=0.0, posinf=0.0, neginf=0.0)
    m = affine(h)

    def against_habit(axis):  # DICOM's habit: columns to the left, rows to the back or the feet
        k = int(np.argmax(np.abs(m[:, axis])))
        return m[k, axis] > 0

    if against_habit(0):
        v = v[:, :, ::-1]
    if against_habit(1):
        v = v[:, ::-1, :]
    return nz, [np.ascontiguousarray(v[k]).astype("<f4")[..., None] for k in (0, nz // 2)], slope not in (0.0, 1.0)


def main():
    if len(sys.argv) > 1:
        ROOTS["shared"] = sys.argv[1]
    for root, folder in ROOTS.items():
        for base, _, names in sorted(os.walk(folder)):
            for name in sorted(names):
                path = os.path.join(base, name)
                if name in NOT_JUDGED or "/src/pydicom/data/test_files" in path or os.path.getsize(path) > 1 << 21:
                    continue
                try:
                    found = nifti(path) if name.endswith((".nii", ".nii.gz")) else dicom(path)
                except Exception:
                    continue
                if not found:
                    continue
                frames, f, lossy = found
                values = [f"{x.mean(dtype='f8'):.4f}" if lossy else hashlib.sha256(x.tobytes()).hexdigest() for x in f]
                print(root, os.path.relpath(path, folder), frames, *f[0].shape, *values, sep="\t")


if __name__ == "__main__":
    main()
