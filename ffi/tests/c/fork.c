/* What a child can do with what its parent opened: `fork URL`. */

#include "check.h"

#include <signal.h>

static vmx_pool *pool;
static vmx_device *device;
static vmx_volume *volume;
static vmx_volumes *volumes;
static vmx_extents *extents;
static vmx_export *exported;
static vmx_control *control;

static void never(void *data, vmx_status status, vmx_error *error) {
    (void)data, (void)status, (void)error;
    CHECK(!"a request that was refused has ended");
}

static int never_held(void *data) {
    (void)data;
    CHECK(!"what was refused is frozen");
    return 1;
}

static void in_the_child(void) {
    vmx_usage usage;
    FAILS(VMX_INVALID_INPUT, vmx_get_usage(pool, &usage, sizeof usage, &err));
    vmx_capabilities can;
    FAILS(VMX_INVALID_INPUT, vmx_get_capabilities(pool, &can, sizeof can, &err));
    FAILS(VMX_INVALID_INPUT, vmx_delete_volume(pool, "v", &err));
    vmx_group_member member = {pool, "v", "g"};
    FAILS(VMX_INVALID_INPUT,
          vmx_snapshot_group(&member, 1, never_held, never_held, NULL, 0, NULL, NULL, &err));
    vmx_volumes *other = NULL;
    FAILS(VMX_INVALID_INPUT, vmx_list_volumes(pool, &other, &err));
    vmx_volume *next = NULL;
    FAILS(VMX_INVALID_INPUT, vmx_next_volume(volumes, &next, &err));
    uint64_t offset = 0, length = 0;
    FAILS(VMX_INVALID_INPUT, vmx_next_extent(extents, &offset, &length, &err));
    char data[4] = "";
    FAILS(VMX_INVALID_INPUT, vmx_read(device, 0, data, sizeof data, &err));
    FAILS(VMX_INVALID_INPUT, vmx_write(device, 0, data, sizeof data, &err));
    FAILS(VMX_INVALID_INPUT, vmx_flush(device, &err));
    FAILS(VMX_INVALID_INPUT, vmx_read_async(device, 0, data, sizeof data, never, NULL, &err));
    FAILS(VMX_INVALID_INPUT, vmx_flush_async(device, never, NULL, &err));
    char *status = NULL;
    FAILS(VMX_INVALID_INPUT, vmx_get_export_status(exported, &status, &err));
    FAILS(VMX_INVALID_INPUT, vmx_get_export_uri(exported, 0, NULL, &status, &err));
    FAILS(VMX_INVALID_INPUT, vmx_stop_export(exported, 0, &err));
    CHECK(vmx_device_size(device) == 0);
    CHECK(strcmp(vmx_volume_name(volume), "v") == 0);
    CHECK(strcmp(vmx_device_name(device), "v") == 0);
    CHECK(vmx_get_usage(pool, &usage, sizeof usage, &err) == VMX_INVALID_INPUT);
    CHECK(strstr(vmx_error_get(err, "reason"), "forked") != NULL);
    vmx_error_free(err);
    err = NULL;
    vmx_cancel(control);

    /* A pool of its own works, and so does freeing all the others. */
    vmx_pool *own = NULL;
    OK(vmx_open_pool("memory:", &own, &err));
    create(own, "c", MIB);
    put(own, "c", 0, 'c', 4096);
    CHECK(holds(own, "c", 0, 'c', 4096));
    vmx_pool_free(own);
    vmx_export_free(exported);
    vmx_extents_free(extents);
    vmx_volumes_free(volumes);
    vmx_volume_free(volume);
    vmx_device_free(device);
    vmx_pool_free(pool);
    vmx_control_free(control);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    OK(vmx_open_pool(argv[1], &pool, &err));
    create(pool, "v", MIB);
    put(pool, "v", 0, 'v', 4096);
    device = open_as(pool, "v", VMX_READ_WRITE);
    OK(vmx_get_volume(pool, "v", &volume, &err));
    OK(vmx_list_volumes(pool, &volumes, &err));
    OK(vmx_list_device_extents(device, 0, MIB, &extents, &err));
    OK(vmx_new_control(NULL, NULL, &control, &err));
    const char *const listen[] = {"tcp:127.0.0.1:0"};
    vmx_export_options options;
    memset(&options, 0, sizeof options);
    options.every_volume = 1;
    options.listen = listen;
    options.listen_count = 1;
    OK(vmx_start_export(pool, &options, sizeof options, &exported, &err));

    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        /* A child that hangs is a failure too. */
        alarm(120);
        in_the_child();
        /* Not through exit: what the parent opened is lost here, as promised. */
        fflush(stdout);
        kill(getpid(), SIGUSR1);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1);

    /* The child has harmed nothing. */
    CHECK(!vmx_control_is_cancelled(control));
    OK(vmx_write(device, 4096, "still", 5, &err));
    OK(vmx_flush(device, &err));
    CHECK(holds(pool, "v", 0, 'v', 4096));
    char *json = NULL;
    OK(vmx_get_export_status(exported, &json, &err));
    vmx_string_free(json);
    vmx_volume *next = NULL;
    OK(vmx_next_volume(volumes, &next, &err));
    CHECK(next != NULL);
    vmx_volume_free(next);
    vmx_export_free(exported);
    vmx_extents_free(extents);
    vmx_volumes_free(volumes);
    vmx_volume_free(volume);
    vmx_device_free(device);
    vmx_control_free(control);
    OK(vmx_delete_volume(pool, "v", &err));
    vmx_pool_free(pool);
    wait_for_threads();
    puts("fork: ok");
    return 0;
}
