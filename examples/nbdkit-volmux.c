/* A plugin of nbdkit that serves a volume of any pool.
 *
 *     cc -shared -fPIC nbdkit-volmux.c -o nbdkit-volmux.so $(pkg-config --cflags --libs volmux)
 *     nbdkit ./nbdkit-volmux.so pool=dir:///srv/volumes volume=web
 *     nbdkit ./nbdkit-volmux.so pool=memory: volume=scratch size=1G
 *
 * pool=URL         the pool
 * volume=NAME      the volume
 * size=SIZE        make the volume, thin and of this size, if it is not there
 * readonly=true    open it for reading only, beside a writer
 *
 * All connections share one open device, so that a flush on one covers the writes of all.
 */

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <volmux.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static const char *pool_url;
static const char *volume_name;
static int64_t create_size = -1;
static bool read_only;

static vmx_pool *pool;
static vmx_device *device;

/* What the client is told of a failure. */
static int errno_of(vmx_status status) {
    switch (status) {
    case VMX_INVALID_INPUT: return EINVAL;
    case VMX_NO_SPACE: return ENOSPC;
    case VMX_PERMISSION_DENIED: return EPERM;
    case VMX_UNSUPPORTED: return EOPNOTSUPP;
    case VMX_FENCED: return ESHUTDOWN;
    default: return EIO;
    }
}

/* Logs an error, frees it, and gives what a callback returns. */
static int failed(vmx_error *err) {
    nbdkit_error("%s", vmx_error_message(err));
    for (size_t i = 0; i < vmx_error_cause_count(err); i++) {
        nbdkit_error("because %s", vmx_error_cause(err, i));
    }
    nbdkit_set_error(errno_of(vmx_error_status(err)));
    vmx_error_free(err);
    return -1;
}

static int volmux_config(const char *key, const char *value) {
    if (strcmp(key, "pool") == 0) {
        pool_url = value;
    } else if (strcmp(key, "volume") == 0) {
        volume_name = value;
    } else if (strcmp(key, "size") == 0) {
        create_size = nbdkit_parse_size(value);
        return create_size < 0 ? -1 : 0;
    } else if (strcmp(key, "readonly") == 0) {
        int given = nbdkit_parse_bool(value);
        read_only = given == 1;
        return given < 0 ? -1 : 0;
    } else {
        nbdkit_error("there is no parameter %s", key);
        return -1;
    }
    return 0;
}

static int volmux_config_complete(void) {
    if (pool_url == NULL || volume_name == NULL) {
        nbdkit_error("give pool=URL and volume=NAME");
        return -1;
    }
    return 0;
}

static int open_pool(void) {
    vmx_error *err = NULL;
    if (vmx_open_pool(pool_url, &pool, &err) != VMX_OK) {
        return failed(err);
    }
    if (create_size >= 0) {
        vmx_create_options options;
        memset(&options, 0, sizeof options);
        options.size = (uint64_t)create_size;
        if (vmx_create_volume(pool, volume_name, &options, sizeof options, NULL, &err) != VMX_OK) {
            return failed(err);
        }
    }
    return 0;
}

static void close_all(void) {
    vmx_device_free(device);
    vmx_pool_free(pool);
    device = NULL;
    pool = NULL;
}

/* Only a trial, for nobody sees the errors of a server in the background: what is opened before
 * nbdkit forks is of no use afterwards. */
static int volmux_get_ready(void) {
    vmx_error *err = NULL;
    vmx_volume *volume = NULL;
    int result = open_pool();
    if (result == 0 && vmx_get_volume(pool, volume_name, &volume, &err) != VMX_OK) {
        result = failed(err);
    }
    vmx_volume_free(volume);
    close_all();
    return result;
}

static int volmux_after_fork(void) {
    vmx_error *err = NULL;
    if (open_pool() < 0) {
        return -1;
    }
    vmx_open_options options;
    memset(&options, 0, sizeof options);
    options.access = read_only ? VMX_READ_ONLY : VMX_READ_WRITE;
    if (vmx_open_volume(pool, volume_name, &options, sizeof options, &device, &err) != VMX_OK) {
        return failed(err);
    }
    return 0;
}

static void volmux_cleanup(void) {
    /* What was written and not flushed by its client is not promised, but costs little. */
    if (device != NULL && vmx_device_access(device) == VMX_READ_WRITE) {
        vmx_flush(device, NULL);
    }
    close_all();
}

static void *volmux_open(int readonly) {
    (void)readonly;
    return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t volmux_get_size(void *handle) {
    (void)handle;
    return (int64_t)vmx_device_size(device);
}

static int volmux_can_write(void *handle) {
    (void)handle;
    return vmx_device_access(device) == VMX_READ_WRITE;
}

static int yes(void *handle) {
    (void)handle;
    return 1;
}

static int volmux_can_trim(void *handle) {
    (void)handle;
    vmx_error *err = NULL;
    vmx_capabilities can;
    vmx_status status = vmx_get_capabilities(pool, &can, sizeof can, &err);
    return status == VMX_OK ? can.discard != VMX_SUPPORT_NONE : failed(err);
}

static int volmux_can_fua(void *handle) {
    (void)handle;
    return NBDKIT_FUA_NATIVE;
}

/* The end of a request that may have to be durable. */
static int done(vmx_status status, uint32_t flags, vmx_error *err) {
    if (status == VMX_OK && (flags & NBDKIT_FLAG_FUA)) {
        status = vmx_flush(device, &err);
    }
    return status == VMX_OK ? 0 : failed(err);
}

static int volmux_pread(void *handle, void *buffer, uint32_t count, uint64_t offset,
                        uint32_t flags) {
    (void)handle, (void)flags;
    vmx_error *err = NULL;
    vmx_status status = vmx_read(device, offset, buffer, count, &err);
    return status == VMX_OK ? 0 : failed(err);
}

static int volmux_pwrite(void *handle, const void *buffer, uint32_t count, uint64_t offset,
                         uint32_t flags) {
    (void)handle;
    vmx_error *err = NULL;
    vmx_status status = vmx_write(device, offset, buffer, count, &err);
    return done(status, flags, err);
}

static int volmux_flush(void *handle, uint32_t flags) {
    (void)handle, (void)flags;
    vmx_error *err = NULL;
    vmx_status status = vmx_flush(device, &err);
    return status == VMX_OK ? 0 : failed(err);
}

static int volmux_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags) {
    (void)handle;
    vmx_error *err = NULL;
    vmx_status status = vmx_discard(device, offset, count, &err);
    return done(status, flags, err);
}

static int volmux_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags) {
    (void)handle;
    vmx_error *err = NULL;
    vmx_zero_options options;
    memset(&options, 0, sizeof options);
    options.may_discard = (flags & NBDKIT_FLAG_MAY_TRIM) != 0;
    options.fast_only = (flags & NBDKIT_FLAG_FAST_ZERO) != 0;
    vmx_status status = vmx_write_zeroes(device, offset, count, &options, sizeof options, &err);
    if (status == VMX_UNSUPPORTED) {
        /* Not worth a line in the log: nbdkit or the client writes zeros then. */
        vmx_error_free(err);
        nbdkit_set_error(EOPNOTSUPP);
        return -1;
    }
    return done(status, flags, err);
}

static int volmux_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                          struct nbdkit_extents *found) {
    (void)handle, (void)flags;
    const uint32_t hole = NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO;
    uint64_t end = offset + count, at = 0, length = 0;
    vmx_error *err = NULL;
    vmx_extents *extents = NULL;
    vmx_status status = vmx_list_device_extents(device, offset, count, &extents, &err);
    int result = 0;
    while (status == VMX_OK && result == 0 && offset < end) {
        status = vmx_next_extent(extents, &at, &length, &err);
        if (status != VMX_OK) {
            break;
        }
        /* Up to the next extent with data, or after the last one, there is a hole. */
        uint64_t data = length > 0 ? at : end;
        if (data > offset) {
            result = nbdkit_add_extent(found, offset, data - offset, hole);
        }
        if (result == 0 && length > 0) {
            result = nbdkit_add_extent(found, at, length, 0);
        }
        offset = data + length;
    }
    vmx_extents_free(extents);
    return status == VMX_OK ? result : failed(err);
}

static struct nbdkit_plugin plugin = {
    .name = "volmux",
    .version = "0.1.0",
    .longname = "volmux volumes",
    .description = "a volume of a volmux pool: LVM, directory, NFS, iSCSI, object storage, memory",
    .magic_config_key = "volume",
    .config = volmux_config,
    .config_complete = volmux_config_complete,
    .config_help = "pool=URL       The pool.\n"
                   "volume=NAME    The volume.\n"
                   "size=SIZE      Make the volume if it is not there.\n"
                   "readonly=true  Open it for reading only.",
    .get_ready = volmux_get_ready,
    .after_fork = volmux_after_fork,
    .cleanup = volmux_cleanup,
    .open = volmux_open,
    .get_size = volmux_get_size,
    .can_write = volmux_can_write,
    .can_flush = yes,
    .can_trim = volmux_can_trim,
    .can_zero = yes,
    .can_fast_zero = yes,
    .can_extents = yes,
    .can_multi_conn = yes,
    .can_fua = volmux_can_fua,
    .pread = volmux_pread,
    .pwrite = volmux_pwrite,
    .flush = volmux_flush,
    .trim = volmux_trim,
    .zero = volmux_zero,
    .extents = volmux_extents,
};

NBDKIT_REGISTER_PLUGIN(plugin)
