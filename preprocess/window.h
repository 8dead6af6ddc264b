/* window.h: modality units -> [0,1] (PS3.3 C.11.2.1.2 and C.11.2.1.3). */
#ifndef RADAPT_WINDOW_H
#define RADAPT_WINDOW_H
#include "io/catalogue.h"

/* LINEAR as C.11.2.1.2.1 (with the -0.5 and width-1), LINEAR_EXACT or SIGMOID; without a width a step at the centre. */
float window_value(const voi_window *w, double x);

/* The windows of a frame's three channels, by the defaults of DESIGN.md: CT lung -600/1500, soft tissue 40/400, bone
 * 500/2000; MR, NT and NIfTI the series' percentile range; others the header's window, else the percentile range. mode:
 * "auto", or "header", "percentile", "ct3", or "C/W" (one window for all), or "C/W,C/W,C/W". RGB frames have none.
 * The series' range counts for slices of a volume (CT, MR, NT, NIfTI, PT, NM) where it is known, the frame's own for
 * the rest. */
typedef enum { WINDOW_AUTO, WINDOW_HEADER, WINDOW_PERCENTILE, WINDOW_CT3, WINDOW_FIXED } window_mode;
typedef struct {
    window_mode mode;
    voi_window fixed[3];
} window_choice;
err_code window_parse(const char *text, window_choice *out, err *e);
void window_choose(const window_choice *choice, const frame_info *f, voi_window out[3]);

#endif
