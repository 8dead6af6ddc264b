/* adapter.h: what a method trained of a backbone, as a file of its own: the trained tensors alone, a few MB, with the
 * method and its numbers in the metadata:
 *
 *     method      linear, apla, full, lora, bitfit, vpt
 *     peft_seed   drew rows, A, prompts
 *     rows        apla: trained output features a block; 0: all
 *     rank, alpha, targets    lora: "8", "16", "q,v"
 *     prompts, vpt            vpt: "10", "deep" or "shallow"
 *
 * and "normalisation" (of pixels: vit_normalisation_text), "side" (of the largest crops that were trained on, in
 * pixels), "format", "backbone" (vit_hash), "split" (SHA-256 of the split.csv whose held-out patients were left out;
 * empty: none was there). A bundle holds the method's keys behind "bundle." (bundle.h). */
#ifndef RADAPT_ADAPTER_H
#define RADAPT_ADAPTER_H
#include "adapt/checkpoint.h"

enum { ADAPTER_KEYS = 8, ADAPTER_KEY = 40, ADAPTER_VALUE = 40 };
typedef struct {
    checkpoint_meta meta[ADAPTER_KEYS]; /* (n): point into the two below */
    char key[ADAPTER_KEYS][ADAPTER_KEY], value[ADAPTER_KEYS][ADAPTER_VALUE];
    size_t n;
} adapter_text;

/* The spec as metadata, each key behind prefix; and back (without a teacher). false: not there, or damaged. */
void adapter_describe(const peft_spec *s, const char *prefix, adapter_text *out);
bool adapter_spec(const safetensors *f, const char *prefix, peft_spec *out);

/* The teachers' weights of ps (masters where there is none). side: in pixels; split: cohort.split_hash. Atomic. */
err_code adapter_write(const char *path, const vit *m, const param_set *ps, const peft_spec *s, size_t side,
                       const char *split, err *e);
/* Whether it was trained without the patients that this split holds out: then the split was the same. */
bool adapter_kept_out(const safetensors *f, const char *split);
/* Makes the adapter's tensors trainable in m and loads them; ps gets them, with spec->teacher as given. ERR_FORMAT: no
 * adapter; ERR_CONFLICT: of another backbone. */
err_code adapter_load(const safetensors *f, vit *m, bool teacher, param_set *ps, peft_spec *spec, err *e);

#endif
