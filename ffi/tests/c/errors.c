/* Errors and what they tell, structures of other sizes, versions. */

#include "check.h"

static vmx_pool *pool;

static void errors_tell_all(void) {
    vmx_volume *out = NULL;
    CHECK(vmx_get_volume(pool, "none", &out, &err) == VMX_NOT_FOUND);
    CHECK(out == NULL);
    CHECK(vmx_error_status(err) == VMX_NOT_FOUND);
    CHECK(strcmp(vmx_error_op(err), "volume") == 0);
    CHECK(strstr(vmx_error_message(err), "not found") != NULL);
    CHECK(strstr(vmx_error_message(err), "none") != NULL);
    CHECK(!vmx_error_is_retryable(err));
    CHECK(strcmp(vmx_error_get(err, "volume"), "none") == 0);
    CHECK(vmx_error_get(err, "no such key") == NULL && vmx_error_get(err, NULL) == NULL);
    size_t pairs = vmx_error_context_count(err);
    CHECK(pairs > 0);
    for (size_t i = 0; i < pairs; i++) {
        CHECK(vmx_error_get(err, vmx_error_context_key(err, i)) != NULL);
        CHECK(vmx_error_context_value(err, i) != NULL);
    }
    CHECK(vmx_error_context_key(err, pairs) == NULL);
    CHECK(vmx_error_context_value(err, pairs) == NULL);
    vmx_error_free(err);
    err = NULL;

    vmx_device *device = open_as(pool, "v", VMX_READ_WRITE);
    CHECK(vmx_delete_volume(pool, "v", &err) == VMX_BUSY);
    CHECK(vmx_error_is_retryable(err));
    vmx_error_free(err);
    err = NULL;
    vmx_device_free(device);

    /* The argument is named as the header has it. */
    CHECK(vmx_rename_volume(pool, "v", "a/b", NULL, &err) == VMX_INVALID_INPUT);
    CHECK(strcmp(vmx_error_get(err, "argument"), "to") == 0);
    CHECK(strcmp(vmx_error_op(err), "rename_volume") == 0);
    CHECK(vmx_error_get(err, "help") != NULL);
    vmx_error_free(err);
    err = NULL;

    vmx_pool *other = NULL;
    FAILS(VMX_NOT_FOUND, vmx_open_pool("dir:///proc/none", &other, &err));
    /* Nobody listens at this port of loopback. */
    CHECK(vmx_open_pool("iscsi://127.0.0.1:1/iqn.2026-11.org.example:none", &other, &err) ==
          VMX_UNAVAILABLE);
    CHECK(vmx_error_is_retryable(err));
    vmx_error_free(err);
    err = NULL;

    const char *const listen[] = {"tcp:nowhere"};
    vmx_export_options serve;
    memset(&serve, 0, sizeof serve);
    serve.every_volume = 1;
    serve.listen = listen;
    serve.listen_count = 1;
    vmx_export *exported = NULL;
    CHECK(vmx_start_export(pool, &serve, sizeof serve, &exported, &err) == VMX_INVALID_INPUT);
    size_t causes = vmx_error_cause_count(err);
    CHECK(causes > 0 && strlen(vmx_error_cause(err, 0)) > 0);
    CHECK(vmx_error_cause(err, causes) == NULL);
    vmx_error_free(err);
    err = NULL;
    FAILS(VMX_INVALID_CONFIG, vmx_open_pool("floppy:///x", &other, &err));
    FAILS(VMX_INVALID_CONFIG, vmx_open_pool("", &other, &err));
    FAILS(VMX_INVALID_CONFIG, vmx_open_pool("memory:?colour=red", &other, &err));
    FAILS(VMX_INVALID_CONFIG, vmx_open_pool_json("memory:", &other, &err));
    FAILS(VMX_INVALID_CONFIG, vmx_open_pool_json("{}", &other, &err));
    CHECK(other == NULL);
    OK(vmx_open_pool("memory:?total=1MiB", &other, &err));
    vmx_create_options options;
    memset(&options, 0, sizeof options);
    options.size = 2 * MIB;
    options.provisioning = VMX_THICK;
    FAILS(VMX_NO_SPACE,
          vmx_create_volume(other, "thick", &options, sizeof options, NULL, &err));
    vmx_pool_free(other);
}

/* As a later version of the header might have it. */
struct later {
    vmx_create_options options;
    uint64_t new_field;
};

static void structures_grow(void) {
    struct later later;
    memset(&later, 0, sizeof later);
    later.options.size = MIB;
    OK(vmx_create_volume(pool, "later", &later.options, sizeof later, NULL, &err));
    later.new_field = 1;
    FAILS(VMX_INVALID_INPUT,
          vmx_create_volume(pool, "even-later", &later.options, sizeof later, NULL, &err));
    later.new_field = 0;
    FAILS(VMX_INVALID_INPUT, vmx_create_volume(pool, "l", &later.options, 0, NULL, &err));
    FAILS(VMX_INVALID_INPUT, vmx_create_volume(pool, "l", &later.options, 8, NULL, &err));
    FAILS(VMX_INVALID_INPUT, vmx_create_volume(pool, "l", &later.options, SIZE_MAX, NULL, &err));
    later.options.reserved = 1;
    FAILS(VMX_INVALID_INPUT,
          vmx_create_volume(pool, "l", &later.options, sizeof later.options, NULL, &err));
    later.options.reserved = 0;
    later.options.provisioning = 2;
    FAILS(VMX_INVALID_INPUT,
          vmx_create_volume(pool, "l", &later.options, sizeof later.options, NULL, &err));

    vmx_open_options open;
    vmx_device *device = NULL;
    for (int i = 0; i < 3; i++) {
        memset(&open, 0, sizeof open);
        *(i == 0 ? &open.access : i == 1 ? &open.sharing : &open.take_over) = 2;
        FAILS(VMX_INVALID_INPUT, vmx_open_volume(pool, "v", &open, sizeof open, &device, &err));
    }
    device = open_as(pool, "v", VMX_READ_WRITE);
    vmx_zero_options zero;
    memset(&zero, 0, sizeof zero);
    zero.fast_only = 2;
    FAILS(VMX_INVALID_INPUT, vmx_write_zeroes(device, 0, 1, &zero, sizeof zero, &err));
    zero.fast_only = 0;
    zero.may_discard = 2;
    FAILS(VMX_INVALID_INPUT, vmx_write_zeroes(device, 0, 1, &zero, sizeof zero, &err));
    vmx_device_free(device);
    vmx_audit_options audit;
    audit.repair = 2;
    vmx_report *report = NULL;
    FAILS(VMX_INVALID_INPUT, vmx_audit_pool(pool, &audit, sizeof audit, &report, &err));
    vmx_resize_options resize;
    memset(&resize, 0, sizeof resize);
    resize.size = 2 * MIB;
    resize.allow_shrink = 2;
    FAILS(VMX_INVALID_INPUT, vmx_resize_volume(pool, "v", &resize, sizeof resize, NULL, &err));

    struct {
        vmx_usage usage;
        uint64_t new_field;
    } large;
    memset(&large, 0xff, sizeof large);
    OK(vmx_get_usage(pool, &large.usage, sizeof large, &err));
    CHECK(large.new_field == 0 && large.usage.total > 0);
    memset(&large, 0xff, sizeof large);
    FAILS(VMX_INVALID_INPUT, vmx_get_usage(pool, &large.usage, 8, &err));
    FAILS(VMX_INVALID_INPUT, vmx_get_usage(pool, &large.usage, SIZE_MAX, &err));
    CHECK(large.usage.total == UINT64_MAX);
}

static void names_and_versions(void) {
    CHECK(vmx_abi_version() == VMX_ABI_VERSION);
    CHECK(strcmp(vmx_version(), "0.1.0") == 0);
    const char *const names[] = {"Ok", "NotFound", "AlreadyExists", "Unsupported", "InvalidInput",
                                 "InvalidConfig", "NoSpace", "Busy", "Fenced", "PermissionDenied",
                                 "Unauthenticated", "Unavailable", "TimedOut", "Corrupt",
                                 "Internal"};
    for (int i = 0; i <= VMX_INTERNAL; i++) {
        CHECK(strcmp(vmx_status_name(i), names[i]) == 0);
    }
    CHECK(strcmp(vmx_status_name(15), "Unknown") == 0);
    CHECK(strcmp(vmx_status_name(-1), "Unknown") == 0);
    CHECK(VMX_NONE == UINT64_MAX);
}

/* Of a pool on a disk, that somebody may only read. */
static void what_is_not_allowed_is_told(const char *place) {
    char url[512];
    vmx_pool *own = NULL;
    snprintf(url, sizeof url, "file+object://%s", place);
    OK(vmx_open_pool(url, &own, &err));
    create(own, "v", MIB);
    vmx_pool_free(own);
    snprintf(url, sizeof url, "file+object://%s?read_only=true", place);
    OK(vmx_open_pool(url, &own, &err));
    FAILS(VMX_PERMISSION_DENIED, vmx_delete_volume(own, "v", &err));
    FAILS(VMX_PERMISSION_DENIED, vmx_collect_garbage(own, NULL, 0, &err));
    vmx_volume *volume = NULL;
    OK(vmx_get_volume(own, "v", &volume, &err));
    vmx_volume_free(volume);
    vmx_pool_free(own);

    CHECK(setenv("VOLMUX_TEST_KEY", "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", 1) == 0);
    snprintf(url, sizeof url, "%s/sealed", place);
    CHECK(mkdir(url, 0700) == 0);
    snprintf(url, sizeof url,
             "file+object://%s/sealed?init=true&encryption=aes-256-gcm&key_env=VOLMUX_TEST_KEY",
             place);
    OK(vmx_open_pool(url, &own, &err));
    create(own, "v", MIB);
    vmx_pool_free(own);
    own = NULL;
    snprintf(url, sizeof url, "file+object://%s/sealed", place);
    FAILS(VMX_UNAUTHENTICATED, vmx_open_pool(url, &own, &err));
    CHECK(own == NULL);
}

int main(int argc, char **argv) {
    if (argc > 1) {
        what_is_not_allowed_is_told(argv[1]);
    }
    OK(vmx_open_pool("memory:", &pool, &err));
    create(pool, "v", MIB);
    errors_tell_all();
    structures_grow();
    names_and_versions();
    vmx_pool_free(pool);
    wait_for_threads();
    puts("errors: ok");
    return 0;
}
