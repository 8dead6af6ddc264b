/* catalogue.h: what there is: patients, studies, series, instances, frames, with state and reason (SQLite).
 *
 * work/catalogue.db holds pseudonyms only. work/identities.db (mode 0600) holds the key they are made with and
 * everything that identifies: paths, patients' attributes, UIDs. Every unit of work is one transaction: a kill loses at
 * most the unit in flight. One process writes; others may read.
 *
 * Instance states:  found -> stored (its frames are in the frame store) | aside (with a reason)  */
#ifndef RADAPT_CATALOGUE_H
#define RADAPT_CATALOGUE_H
#include "base/hash.h"
#include "io/image.h"

typedef struct catalogue catalogue;

/* Opens or makes both databases under work (made if needed). ERR_CONFLICT: another radapt holds this work directory. */
err_code catalogue_open(catalogue **c, const char *work, err *e);
void catalogue_close(catalogue *c);
/* true: the one before in this work directory was killed. */
bool catalogue_was_killed(const catalogue *c);

/* One frame in the frame store, all that sampling needs; no PHI. */
typedef struct frame_info {
    char patient_key[KEY_HEX], study_key[KEY_HEX], series_key[KEY_HEX], instance_key[KEY_HEX];
    char modality[17], body_part[17];
    int frame;                   /* from 1, as ReferencedFrameNumber counts */
    int rows, columns, channels; /* channels 1 (grey) or 3 (RGB) */
    pixel_type type;             /* PIXEL_I16 or PIXEL_U16 (grey), PIXEL_U8 (RGB) */
    int shard;
    uint64_t offset;         /* of the pixels, from the start of the shard file */
    double slope, intercept; /* modality value = slope * stored + intercept; (1,0) unless the values did not fit */
    bool invert;             /* MONOCHROME1 */
    bool has_padding;
    double padding_low, padding_high; /* modality units, inclusive */
    voi_window window;                /* from the header; present == false: none usable */
    double low, high;                 /* 0.5 and 99.5 percentile of this frame's foreground, modality units */
    double series_low,
        series_high;      /* mean of low, high over the stored frames of the series (filled by catalogue_frames) */
    double spacing_mm[2]; /* of the stored pixels; 0 unknown */
    double sort_mm;       /* position along the slice normal; instance number where unknown */
    uint32_t quirks;
    int64_t checksum; /* of the stored pixels, CRC-32; -1: not known, stored by a radapt that made none */
} frame_info;

/* --- scan
 * ------------------------------------------------------------------------------------------------------------- */
/* What the catalogue remembers of a path, to skip files that have not changed. */
bool catalogue_knows(catalogue *c, const char *path, uint64_t size_bytes, int64_t mtime_ns);
/* Adds a usable file (state found), or one set aside: reason is a short code ("not-dicom", "no-pixels", "duplicate",
 * "truncated", "burned-in", ...), detail one line without PHI; h may be NULL if the header could not be read. A
 * duplicate SOP Instance UID is set aside here: "duplicate" (same size and hash) or "conflict". */
err_code catalogue_add(catalogue *c, const char *path, uint64_t size_bytes, int64_t mtime_ns, const image_header *h,
                       const char *reason, const char *detail, err *e);
/* Another file is there, of other content, that stands for this SOP Instance UID: path would be a "conflict". */
bool catalogue_rivals(catalogue *c, const char *path, const char *sop_uid);
/* false: the last catalogue_add set its file aside, for a reason given or as a duplicate. */
bool catalogue_took(const catalogue *c);
/* Files set aside for this reason are as new again. */
err_code catalogue_forget(catalogue *c, const char *reason, err *e);
/* true: this folder is the work directory, which a scan leaves out. */
bool catalogue_is_work(const catalogue *c, uint64_t device, uint64_t inode);
/* Groups many catalogue_add / catalogue_store calls into one transaction. */
err_code catalogue_begin(catalogue *c, err *e);
err_code catalogue_commit(catalogue *c, err *e);

typedef struct {
    uint64_t files, found, stored, aside, patients, studies, series, frames;
} catalogue_counts;
err_code catalogue_count(catalogue *c, catalogue_counts *out, err *e);

/* --- prepare
 * ---------------------------------------------------------------------------------------------------------- */
/* What a decoder was allowed to take of one file. */
typedef struct {
    uint64_t memory_bytes;
    int timeout_s;
} decode_effort;
/* Instances in state found, their keys and paths, in a fixed order. Also those set aside for no fault of the file's:
 * always where it could not be read ("io", "not-found", "no-space"), and where its decoder ran out of memory, time or
 * luck ("no-memory", "crashed") with less than now allows. Caller frees with catalogue_pending_free. */
typedef struct {
    char instance_key[KEY_HEX];
    char *path;
} pending_instance;
err_code catalogue_pending(catalogue *c, const decode_effort *now, pending_instance **out, size_t *n, err *e);
void catalogue_pending_free(pending_instance *p, size_t n);
/* found -> stored, with its frames (keys of the frames are filled in from the instance), in one transaction. */
err_code catalogue_store(catalogue *c, const char *instance_key, const frame_info *frames, size_t n, err *e);
/* -> aside. under: what its decoder was allowed to take. */
err_code catalogue_set_aside(catalogue *c, const char *instance_key, const char *reason, const char *detail,
                             const decode_effort *under, err *e);
/* stored -> found: its frames are lost or damaged and are to be made again from the file. */
err_code catalogue_unstore(catalogue *c, const char *instance_key, err *e);
/* All stored frames, patient by patient, study by study, series by series, then by sort_mm, instance, frame: those of
 * a multi-frame object that are at one place stay in their order. Patients, studies, series and instances go by the
 * lowest checksum of their pixels, those that share it by all of their checksums: the same export gives the same order
 * in any work directory. Only between groups of the very same frames, and frames without checksums, do pseudonyms
 * decide. While it sorts it takes 90 bytes a frame beside the result. Caller frees *out with free(). */
err_code catalogue_frames(catalogue *c, frame_info **out, size_t *n, err *e);
/* Writes work/quarantine.csv: path,reason,detail. The path is PHI, so the file is 0600 like identities.db. */
err_code catalogue_write_quarantine(catalogue *c, err *e);

/* --- labels and reports
 * --------------------------------------------------------------------------------------------------- */
typedef enum { ID_PATIENT, ID_STUDY, ID_SERIES, ID_SOP, ID_PATH } id_kind;
/* Pseudonym of a real identifier as a user's table holds it; for ID_PATH the absolute path, a path relative to a
 * scanned folder or its file name if that is unique. false: no such thing in the catalogue. *out is the key of the
 * patient, study, series, or instance; its level is that of kind (ID_PATH gives an instance). An NIfTI's patient id,
 * study, series and SOP UID are derived from its path: 'nifti:<relative path>'. A patient id matches under any issuer
 * if that is unambiguous. */
bool catalogue_find(catalogue *c, id_kind kind, const char *value, char out[KEY_HEX]);

/* The series, study and patient that an instance belongs to; false: no such instance. */
bool catalogue_parents(catalogue *c, const char *instance_key, char series[KEY_HEX], char study[KEY_HEX],
                       char patient[KEY_HEX]);

/* The real identity of a study, for the report that goes back to the archive (PHI: do not log). */
typedef struct {
    char instance_key[KEY_HEX], series_uid[65], sop_class[65], sop_uid[65];
    char modality[17];
    int frames;
} study_instance;
typedef struct {
    image_header header; /* of the study's first instance: patient and study attributes */
    study_instance *instances;
    size_t n_instances;
} study_identity;
/* ERR_NOTFOUND; ERR_UNSUPPORTED for a study that is not DICOM (nothing to send back). Free with catalogue_study_fini.
 */
err_code catalogue_study(catalogue *c, const char *study_key, study_identity *out, err *e);
void catalogue_study_fini(study_identity *s);

#endif
