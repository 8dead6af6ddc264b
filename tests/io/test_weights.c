/* One list of tensors from any file; what an index may name. */
#include "io/weights.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "io/safetensors.h"
#include "tests/io/zip_make.h"

#define ASSERT_OK(call)                                                                                                \
    do {                                                                                                               \
        err_code code_ = (call);                                                                                       \
        if (code_) fail_msg("%s: %s", err_name(code_), e.msg);                                                         \
    } while (0)

static char folder[] = "/tmp/radapt_weights_XXXXXX";

static const char *in_folder(const char *name)
{
    static char path[4][256];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

static void write_part(const char *file, const char *a, const char *b, float value)
{
    err e = {0};
    const float v[2] = {value, value + 1};
    tensor t[] = {{.name = a, .dims = 1, .shape = {2}, .data = v}, {.name = b, .dims = 1, .shape = {1}, .data = v}};
    const char *key = "from", *from = file;
    ASSERT_OK(safetensors_write(in_folder(file), t, b ? 2 : 1, &key, &from, 1, &e));
}

static int set_up(void **state)
{
    (void)state;
    err e = {0};
    if (!mkdtemp(folder)) return -1;
    write_part("one.safetensors", "a", "c", 1);
    write_part("two.safetensors", "b", "unlisted", 3);
    static zip z;
    const float v[] = {5, 6};
    static const char code[] = "\x80\2}U\1t"
                               "ctorch._utils\n_rebuild_tensor_v2\n((U\7storagectorch\nFloatStorage\n"
                               "U\0010U\3cpuK\2tQK\0K\2\x85K\1\x85\x89NtRs.";
    zip_add(&z, "x/data.pkl", code, sizeof code - 1);
    zip_add(&z, "x/data/0", v, sizeof v);
    zip_write(&z, in_folder("three.bin"));
    ASSERT_OK(file_write(in_folder("index.json"), "{\"weight_map\":{}}", 17, &e));
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    static const char *const all[] = {"one.safetensors", "two.safetensors", "three.bin", "index.json", "tried"};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) unlink(in_folder(all[i]));
    return rmdir(folder);
}

static void indexes(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        err_code rc;
        const char *message;
        size_t n;
    } rows[] = {
        {"{\"metadata\":{},\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\",\"c\":\"one."
         "safetensors\"}}",
         ERR_OK, NULL, 3},
        {"{\"weight_map\":{\"t\":\"three.bin\",\"a\":\"one.safetensors\"}}", ERR_OK, NULL, 2},
        {" \n{\"weight_map\":{}}", ERR_OK, NULL, 0},
        {"{\"weight_map\":{\"b\":\"one.safetensors\"}}", ERR_FORMAT, "'b' is not in 'one.safetensors'", 0},
        {"{\"weight_map\":{\"a\":\"four.safetensors\"}}", ERR_NOTFOUND, "'four.safetensors', which the index names", 0},
        {"{\"weight_map\":{\"a\":\"../one.safetensors\"}}", ERR_FORMAT, "plain name", 0},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", ERR_FORMAT, "plain name", 0},
        {"{\"weight_map\":{\"a\":\"..\"}}", ERR_FORMAT, "plain name", 0},
        {"{\"weight_map\":{\"a\":\"\"}}", ERR_FORMAT, "plain name", 0},
        {"{\"weight_map\":{\"a\":\"one\\u001b[2J\"}}", ERR_FORMAT, "plain name", 0},
        {"{\"weight_map\":{\"a\":\"one\\u0000\"}}", ERR_FORMAT, NULL, 0},
        {"{\"weight_map\":{\"a\":\"index.json\"}}", ERR_FORMAT, "an index, too", 0},
        {"{\"weight_map\":{\"a\":\"tried\"}}", ERR_FORMAT, "an index, too", 0},
        {"{\"weight_map\":{\"a\":1}}", ERR_FORMAT, "in no file", 0},
        {"{\"weight_map\":[]}", ERR_FORMAT, "weight_map", 0},
        {"{}        ", ERR_FORMAT, "weight_map", 0},
        {"{\"weight_map\":{\"a\":\"one.safetensors\",\"a\":\"two.safetensors\"}}", ERR_FORMAT, "JSON", 0},
        {"{\"weight_map\":{\"a\":", ERR_FORMAT, "JSON", 0},
        {"version https://git-lfs.github.com/spec/v1\noid sha256:0", ERR_FORMAT, "git lfs pull", 0},
        {"\x80\2\x8a\nl\xfc\x9c", ERR_UNSUPPORTED, "before 1.6", 0},
        {"PK\3\4", ERR_FORMAT, "zip", 0},
        {"<html>", ERR_FORMAT, "neither", 0},
        {"", ERR_FORMAT, "neither", 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        weights_file w;
        err e = {0};
        ASSERT_OK(file_write(in_folder("tried"), rows[i].json, strlen(rows[i].json), &e));
        err_code rc = weights_open(&w, in_folder("tried"), &e);
        if (rc != rows[i].rc) fail_msg("row %zu: %s (%s)", i, err_name(rc), e.msg);
        if (rows[i].message && !strstr(e.msg, rows[i].message)) fail_msg("row %zu: %s", i, e.msg);
        if (!rc) assert_int_equal(w.n, rows[i].n);
        weights_close(&w);
    }
}

/* Each tensor is the one of the file that the index names, whatever format that has. */
static void values(void **state)
{
    (void)state;
    static const char json[] =
        "{\"weight_map\":{\"b\":\"two.safetensors\",\"t\":\"three.bin\",\"a\":\"one.safetensors\"}}";
    static const struct {
        const char *name;
        float first;
    } rows[] = {{"a", 1}, {"b", 3}, {"t", 5}};
    weights_file w;
    err e = {0};
    ASSERT_OK(file_write(in_folder("tried"), json, sizeof json - 1, &e));
    ASSERT_OK(weights_open(&w, in_folder("tried"), &e));
    for (size_t i = 0; i < 3; i++) {
        float v[2];
        assert_string_equal(w.tensors[i].name, rows[i].name);
        ASSERT_OK(tensor_to_f32(weights_find(&w, rows[i].name), v, &e));
        assert_true(v[0] == rows[i].first && v[1] == rows[i].first + 1);
    }
    assert_null(weights_find(&w, "unlisted"));
    assert_string_equal(weights_meta(&w, "from"), "two.safetensors"); /* the part that comes first */
    assert_null(weights_meta(&w, "to"));
    weights_close(&w);
    ASSERT_OK(weights_open(&w, in_folder("two.safetensors"), &e));
    assert_non_null(weights_find(&w, "unlisted"));
    weights_close(&w);
    assert_int_equal(weights_open(&w, in_folder("missing"), &e), ERR_NOTFOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(indexes), cmocka_unit_test(values)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
