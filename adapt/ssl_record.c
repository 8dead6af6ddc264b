/* ssl_record.c: what an adaptation tells of itself: a line in metrics.jsonl every few steps and at every evaluation,
 * and result.json at the end. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adapt/ssl_run.h"

json_t *ssl_record_real(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

double ssl_record_waited(const ssl_result *out)
{
    return out->seconds > 0 ? out->waited_seconds / out->seconds : NAN;
}

err_code ssl_record_line(ssl_run *r, json_t *j, err *e)
{
    int bad = json_dumpf(j, r->metrics, JSON_COMPACT | JSON_PRESERVE_ORDER);
    json_decref(j);
    fputc('\n', r->metrics);
    if (bad || fflush(r->metrics)) FAIL(e, NOSPACE, "adapt: metrics.jsonl cannot be written");
    return ERR_OK;
}

err_code ssl_record_read(const char *path, ssl_result *out, err *e)
{
    json_t *j = json_load_file(path, 0, NULL);
    if (!json_is_object(j)) {
        json_decref(j);
        FAIL(e, FORMAT, "adapt: result.json of this run is damaged; remove the run's folder");
    }
    const struct {
        const char *key;
        double *to;
    } reals[] = {{"seconds", &out->seconds},           {"images_per_s", &out->images_per_s},
                 {"loss_first", &out->loss_first},     {"loss_last", &out->loss_last},
                 {"knn_start", &out->knn_start},       {"knn_best", &out->knn_best},
                 {"linear_start", &out->linear_start}, {"linear_best", &out->linear_best},
                 {"rank_start", &out->rank_start},     {"rank_best", &out->rank_best},
                 {"peak_bytes", &out->peak_bytes},     {"waited_seconds", &out->waited_seconds}};
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++) {
        const json_t *v = json_object_get(j, reals[i].key);
        *reals[i].to = json_is_number(v) ? json_number_value(v) : NAN;
    }
    out->steps = (uint64_t)json_integer_value(json_object_get(j, "steps"));
    out->images = (uint64_t)json_integer_value(json_object_get(j, "images"));
    out->best_step = (uint64_t)json_integer_value(json_object_get(j, "best_step"));
    out->trainable = (size_t)json_integer_value(json_object_get(j, "trainable"));
    out->rolled_back = json_is_true(json_object_get(j, "rolled_back"));
    out->already_done = true;
    json_decref(j);
    return ERR_OK;
}

err_code ssl_record_write(const ssl_run *r, err *e)
{
    const ssl_result *t = r->out;
    char path[FILE_PATH_MAX];
    TRY(ssl_run_path(r, "result.json", path, e));
    json_t *j = json_pack("{s:I,s:I,s:I,s:I,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:b}", "steps",
                          (json_int_t)t->steps, "images", (json_int_t)t->images, "best_step", (json_int_t)t->best_step,
                          "trainable", (json_int_t)t->trainable, "seconds", ssl_record_real(t->seconds), "images_per_s",
                          ssl_record_real(t->images_per_s), "waited_seconds", ssl_record_real(t->waited_seconds),
                          "waited_share", ssl_record_real(ssl_record_waited(t)), "loss_first",
                          ssl_record_real(t->loss_first), "loss_last", ssl_record_real(t->loss_last), "knn_start",
                          ssl_record_real(t->knn_start), "knn_best", ssl_record_real(t->knn_best), "linear_start",
                          ssl_record_real(t->linear_start), "linear_best", ssl_record_real(t->linear_best),
                          "rank_start", ssl_record_real(t->rank_start), "rank_best", ssl_record_real(t->rank_best),
                          "peak_bytes", ssl_record_real(t->peak_bytes), "rolled_back", t->rolled_back);
    char *text = j ? json_dumps(j, JSON_INDENT(2) | JSON_PRESERVE_ORDER) : NULL;
    json_decref(j);
    if (!text) FAIL(e, NOMEM, "adapt: no memory for the result");
    err_code rc = file_write(path, text, strlen(text), e);
    free(text);
    return rc;
}
