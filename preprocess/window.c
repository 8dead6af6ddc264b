/* window.c: the VOI functions of PS3.3 C.11.2, scaled to [0,1], and which windows a frame is looked at through.
 *
 * A percentile range [low, high] is the LINEAR_EXACT window from low to high. A window without width is a step, so that
 * a constant frame is black and nothing divides by zero. */
#include "preprocess/window.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

float window_value(const voi_window *w, double x)
{
    double center = w->center, width = w->width;
    if (w->function == VOI_SIGMOID) { /* C.11.2.1.3.1 */
        if (!(width > 0)) return x < center ? 0.0f : x > center ? 1.0f : 0.5f;
        return x == x ? (float)(1 / (1 + exp(-4 * (x - center) / width))) : 0.0f;
    }
    if (w->function == VOI_LINEAR) { /* C.11.2.1.2.1; LINEAR_EXACT is the same without the two shifts: C.11.2.1.3.2 */
        center -= 0.5;
        width -= 1;
    }
    if (!(width > 0)) width = 0;
    if (!(x > center - width / 2)) return 0.0f;
    if (x > center + width / 2) return 1.0f;
    return (float)((x - center) / width + 0.5);
}

static voi_window between(double low, double high)
{
    return (voi_window){true, VOI_LINEAR_EXACT, (low + high) / 2, high > low ? high - low : 0};
}

/* Modalities whose frames are slices of one volume: they share their series' range. */
static bool is_volume(const char *modality)
{
    static const char *const volumes[] = {"MR", "NT", "NIFTI", "CT", "PT", "NM"};
    for (size_t i = 0; i < sizeof volumes / sizeof *volumes; i++)
        if (!strcmp(modality, volumes[i])) return true;
    return false;
}

static voi_window percentile(const frame_info *f)
{
    if (is_volume(f->modality) && f->series_high > f->series_low) return between(f->series_low, f->series_high);
    return between(f->low, f->high);
}

void window_choose(const window_choice *choice, const frame_info *f, voi_window out[3])
{
    static const voi_window ct3[3] = {
        {true, VOI_LINEAR, -600, 1500}, {true, VOI_LINEAR, 40, 400}, {true, VOI_LINEAR, 500, 2000}};
    window_mode mode = choice->mode;
    if (mode == WINDOW_AUTO) {
        if (!strcmp(f->modality, "CT"))
            mode = WINDOW_CT3;
        else
            mode = is_volume(f->modality) ? WINDOW_PERCENTILE : WINDOW_HEADER;
    }
    voi_window one = mode == WINDOW_HEADER && f->window.present ? f->window : percentile(f);
    for (int c = 0; c < 3; c++) out[c] = mode == WINDOW_CT3 ? ct3[c] : mode == WINDOW_FIXED ? choice->fixed[c] : one;
}

/* "C/W" up to the end or a comma; *text moves behind it. */
static bool parse_one(const char **text, voi_window *w)
{
    char *end;
    double center = strtod(*text, &end);
    if (end == *text || *end != '/') return false;
    const char *second = end + 1;
    double width = strtod(second, &end);
    if (end == second || (*end && *end != ',')) return false;
    if (!(fabs(center) < 1e9 && width > 0 && width < 1e9)) return false;
    /* LINEAR is not defined below a width of 1; there the exact function is meant. */
    *w = (voi_window){true, width >= 1 ? VOI_LINEAR : VOI_LINEAR_EXACT, center, width};
    *text = end + (*end == ',');
    return true;
}

err_code window_parse(const char *text, window_choice *out, err *e)
{
    static const struct {
        const char *name;
        window_mode mode;
    } names[] = {
        {"auto", WINDOW_AUTO}, {"header", WINDOW_HEADER}, {"percentile", WINDOW_PERCENTILE}, {"ct3", WINDOW_CT3}};
    window_choice w = {0};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(text, names[i].name)) {
            w.mode = names[i].mode;
            *out = w;
            return ERR_OK;
        }
    w.mode = WINDOW_FIXED;
    size_t length = strlen(text);
    const char *p = text;
    int n = 0;
    bool good = length > 0 && text[length - 1] != ',';
    while (good && n < 3 && *p) good = parse_one(&p, &w.fixed[n++]);
    if (!good || *p || (n != 1 && n != 3))
        FAIL(e, USAGE, "window: auto, header, percentile, ct3, CENTRE/WIDTH, or three of these with commas between");
    if (n == 1) w.fixed[1] = w.fixed[2] = w.fixed[0];
    *out = w;
    return ERR_OK;
}
