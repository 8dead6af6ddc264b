/* peft.h: what of a backbone is trained, as data: the method's name and its few numbers, as the command line, adapter
 * files and bundles write them.
 *
 *   linear  nothing
 *   apla    the attention's output projections, all rows or a few of each block (Sorokin et al. 2025)
 *   full    everything
 *   lora    low-rank updates W + alpha/rank B A of chosen linear layers (Hu et al. 2022, section 4.1)
 *   bitfit  every bias, LayerNorm's too (Ben Zaken et al. 2022)
 *   vpt     prompt tokens: before the first block (shallow), or of its own before each (deep; Jia et al. 2022) */
#ifndef RADAPT_PEFT_H
#define RADAPT_PEFT_H
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

typedef enum { METHOD_LINEAR, METHOD_APLA, METHOD_FULL, METHOD_LORA, METHOD_BITFIT, METHOD_VPT } peft_method;

/* Layers that LoRA updates: bits of peft_spec.targets. qkv: one update of the packed layer; q, k, v: of its thirds;
 * fc1, fc2: the MLP's first and last layer, w12 and w3 of a SwiGLU one. */
enum { PEFT_QKV = 1, PEFT_Q = 2, PEFT_K = 4, PEFT_V = 8, PEFT_PROJ = 16, PEFT_FC1 = 32, PEFT_FC2 = 64 };
enum { PEFT_RANK_MAX = 512, PEFT_PROMPTS_MAX = 512, PEFT_TARGETS_TEXT = 32 };

typedef struct peft_spec {
    peft_method method;
    int rows;      /* APLA: r output features per block; 0: all */
    uint64_t seed; /* draws rows, A, prompts */
    bool teacher;  /* make an EMA teacher (own trainable slices; everything frozen is shared) */
    int rank;      /* LoRA */
    float alpha;
    unsigned targets;
    int prompts; /* VPT: tokens */
    bool deep;
} peft_spec;

const char *peft_name(peft_method m);
/* false: no such method. */
bool peft_find(const char *name, peft_method *out);
/* "q,v" <-> bits. ERR_USAGE: an unknown name, none, or qkv beside a third of it. */
err_code peft_targets(const char *text, unsigned *out, err *e);
void peft_targets_text(unsigned targets, char out[PEFT_TARGETS_TEXT]);
/* ERR_USAGE: numbers that the method cannot have. */
err_code peft_check(const peft_spec *s, err *e);
/* Whether both train the same tensors, so that what one has trained the other can go on with. */
bool peft_same(const peft_spec *a, const peft_spec *b);

#endif
