/* device.c: what every device has whatever computes for it: workspace, the sticky error, the end. */
#include "model/op.h"

void device_close(device *d)
{
    if (!d->op) return;
    if (d->work) d->op->free(d, d->work);
    d->op->close(d);
    *d = (device){0};
}

err_code device_reserve(device *d, size_t bytes, err *e)
{
    if (bytes <= d->work_bytes) return ERR_OK;
    dv *p;
    TRY(d->op->alloc(d, bytes, &p, e));
    if (d->work) d->op->free(d, d->work);
    d->work = p;
    d->work_bytes = bytes;
    return ERR_OK;
}

err_code device_sync(device *d, err *e)
{
    d->op->sync(d);
    if (!d->sticky.code) return ERR_OK;
    if (e && !e->code) *e = d->sticky;
    err_code code = d->sticky.code;
    d->sticky = (err){0};
    return code;
}
