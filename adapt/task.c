/* task.c: see task.h. */
#include "adapt/task.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "adapt/metrics.h"

int task_outputs(label_task task, int labels)
{
    return task == TASK_ORDINAL ? labels - 1 : labels;
}

static void softmax(double *p, const double *z, size_t K)
{
    double most = -INFINITY, sum = 0;
    for (size_t k = 0; k < K; k++) most = fmax(most, z[k]);
    for (size_t k = 0; k < K; k++) sum += p[k] = exp(z[k] - most);
    for (size_t k = 0; k < K; k++) p[k] /= sum;
}

static double sigmoid(double z)
{
    double tail = exp(-fabs(z));
    return (z >= 0 ? 1 : tail) / (1 + tail);
}

void task_probabilities(label_task task, int labels, double *z, size_t n, double *p)
{
    size_t K = (size_t)labels, outputs = (size_t)task_outputs(task, labels);
    for (size_t i = 0; i < n; i++, z += outputs, p += K) {
        if (task == TASK_MULTICLASS) {
            softmax(p, z, K);
        } else if (task == TASK_MULTILABEL) {
            for (size_t k = 0; k < K; k++) p[k] = sigmoid(z[k]);
        } else {
            double above = 1; /* P(grade >= k) */
            for (size_t k = 0; k < outputs; k++) {
                p[k] = above * sigmoid(-z[k]);
                above *= sigmoid(z[k]);
            }
            p[outputs] = above;
        }
    }
}

void task_targets(label_task task, int labels, const labelled_case *k, const float *class_weight, float *target,
                  float *weight)
{
    int outputs = task_outputs(task, labels);
    for (int j = 0; j < outputs; j++) {
        bool multi = task == TASK_MULTILABEL, there;
        there = multi ? k->marks[j] == 1 : task == TASK_ORDINAL ? k->label > j : k->label == j;
        bool known = multi ? k->marks[j] >= 0 : task == TASK_ORDINAL ? k->label >= j : true;
        target[j] = there;
        weight[j] = known;
        if (known && class_weight) weight[j] = multi ? class_weight[2 * j + there] : class_weight[2 * k->label + 1];
    }
}

static float balanced(size_t all, size_t groups, size_t of_it)
{
    if (!of_it) return 1;
    return fminf(fmaxf((float)all / ((float)groups * (float)of_it), 0.1f), 10);
}

void task_weights(const cohort *c, float *weight)
{
    size_t labels = (size_t)c->n_labels, all = 0;
    for (size_t i = 0; i < c->n_cases; i++) all += c->cases[i].part == SPLIT_TRAIN;
    for (size_t k = 0; k < labels; k++) {
        size_t with = 0, without = 0;
        for (size_t i = 0; i < c->n_cases; i++) {
            const labelled_case *one = &c->cases[i];
            if (one->part != SPLIT_TRAIN) continue;
            with += one->marks ? one->marks[k] == 1 : one->label == (int)k;
            without += one->marks && one->marks[k] == 0;
        }
        bool multi = c->task == TASK_MULTILABEL;
        weight[2 * k + 1] = multi ? balanced(with + without, 2, with) : balanced(all, labels, with);
        weight[2 * k] = multi ? balanced(with + without, 2, without) : 1;
    }
}

typedef struct {
    FILE *f;
    char *text;
    size_t bytes;
    int names;
} name_list;

static void add_name(name_list *l, const char *before, const char *name)
{
    if (l->f) fprintf(l->f, "%s%s%s", l->names++ ? ";" : "", before, name);
}

static char *finish_list(name_list *l)
{
    if (!l->f) return NULL;
    bool bad = ferror(l->f);
    if (fclose(l->f) || bad) {
        free(l->text);
        return NULL;
    }
    return l->text;
}

char *task_text(const cohort *c, const labelled_case *k)
{
    name_list l = {0};
    l.f = open_memstream(&l.text, &l.bytes);
    if (!k->marks) add_name(&l, "", c->labels[k->label]);
    for (int j = 0; j < c->n_labels && k->marks; j++)
        if (k->marks[j]) add_name(&l, k->marks[j] < 0 ? "?" : "", c->labels[j]);
    return finish_list(&l);
}

char *task_text_of(const cohort *c, const double *probability)
{
    name_list l = {0};
    l.f = open_memstream(&l.text, &l.bytes);
    if (c->task != TASK_MULTILABEL) add_name(&l, "", c->labels[metrics_decide(c->task, probability, c->n_labels)]);
    for (int j = 0; j < c->n_labels && c->task == TASK_MULTILABEL; j++)
        if (probability[j] >= 0.5) add_name(&l, "", c->labels[j]);
    return finish_list(&l);
}
