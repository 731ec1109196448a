/* Snapshots of several volumes, between a freeze and a thaw: `group URL`. */

#include "check.h"

/* What writes the volumes, and stops when it is told to. */
struct writer {
    vmx_device *devices[2];
    const vmx_pool *pool;
    vmx_control *cancels;
    pthread_mutex_t lock;
    char calls[64];
    /* Freezing takes until it is thawed. */
    bool late;
    int fails, thaws_that_fail;
};

static void note(struct writer *writer, const char *call) {
    pthread_mutex_lock(&writer->lock);
    CHECK(strlen(writer->calls) + strlen(call) < sizeof writer->calls);
    strcat(writer->calls, call);
    pthread_mutex_unlock(&writer->lock);
}

static bool is_thawed(struct writer *writer) {
    pthread_mutex_lock(&writer->lock);
    bool thawed = strchr(writer->calls, 't') != NULL;
    pthread_mutex_unlock(&writer->lock);
    return thawed;
}

static int freeze(void *data) {
    struct writer *writer = (struct writer *)data;
    vmx_error *mine = NULL;
    note(writer, "f");
    if (writer->cancels) {
        vmx_cancel(writer->cancels);
    }
    for (int i = 0; writer->late && !is_thawed(writer); i++) {
        CHECK(i < 60 * 1000);
        usleep(1000);
    }
    /* Calls that wait may be made here. */
    for (int i = 0; i < 2; i++) {
        CHECK(vmx_write(writer->devices[i], 0, "frozen", 6, &mine) == VMX_OK);
        CHECK(vmx_flush(writer->devices[i], &mine) == VMX_OK);
    }
    note(writer, "F");
    return writer->fails;
}

static int thaw(void *data) {
    struct writer *writer = (struct writer *)data;
    note(writer, "t");
    if (writer->thaws_that_fail > 0) {
        writer->thaws_that_fail--;
        return 1;
    }
    return 0;
}

static struct writer writer;
static vmx_group_member members[2];

static void reset(void) {
    writer.calls[0] = 0;
    writer.cancels = NULL;
    writer.late = false;
    writer.fails = writer.thaws_that_fail = 0;
}

static void none_is_left(const vmx_pool *pool) {
    vmx_volume *volume = NULL;
    OK(vmx_find_volume(pool, "root-1", &volume, &err));
    CHECK(volume == NULL);
    OK(vmx_find_volume(pool, "data-1", &volume, &err));
    CHECK(volume == NULL);
}

static void failures(vmx_pool *pool) {
    vmx_volume *volumes[2] = {NULL, NULL};
    /* What is wrong before freezes nothing. */
    FAILS(VMX_INVALID_INPUT, vmx_snapshot_group(members, 0, freeze, thaw, &writer, 0, NULL, volumes,
                                                &err));
    vmx_group_member wrong[2] = {members[0], members[0]};
    FAILS(VMX_INVALID_INPUT, vmx_snapshot_group(wrong, 2, freeze, thaw, &writer, 0, NULL, volumes,
                                                &err));
    wrong[1].volume = "none";
    wrong[1].snapshot = "none-1";
    FAILS(VMX_NOT_FOUND, vmx_snapshot_group(wrong, 2, freeze, thaw, &writer, 0, NULL, volumes, &err));
    wrong[1].volume = "data";
    wrong[1].snapshot = "root";
    FAILS(VMX_ALREADY_EXISTS, vmx_snapshot_group(wrong, 2, freeze, thaw, &writer, 0, NULL, volumes,
                                                 &err));
    CHECK(strcmp(writer.calls, "") == 0);
    none_is_left(pool);

    writer.fails = 7;
    CHECK(vmx_snapshot_group(members, 2, freeze, thaw, &writer, 0, NULL, volumes, &err) ==
          VMX_UNAVAILABLE);
    CHECK(strcmp(vmx_error_get(err, "returned"), "7") == 0);
    CHECK(strcmp(vmx_error_get(err, "reason"), "freeze failed") == 0);
    vmx_error_free(err);
    err = NULL;
    CHECK(strcmp(writer.calls, "fFt") == 0);
    none_is_left(pool);

    reset();
    writer.late = true;
    FAILS(VMX_TIMED_OUT, vmx_snapshot_group(members, 2, freeze, thaw, &writer, 1000, NULL, volumes,
                                            &err));
    /* At once, and again after the freeze that came late. */
    CHECK(strcmp(writer.calls, "ftFt") == 0);
    none_is_left(pool);

    reset();
    writer.late = true;
    OK(vmx_new_control(NULL, NULL, &writer.cancels, &err));
    vmx_control *control = writer.cancels;
    FAILS(VMX_TIMED_OUT, vmx_snapshot_group(members, 2, freeze, thaw, &writer, 60000, control,
                                            volumes, &err));
    CHECK(strcmp(writer.calls, "ftFt") == 0);
    none_is_left(pool);
    reset();
    FAILS(VMX_TIMED_OUT, vmx_snapshot_group(members, 2, freeze, thaw, &writer, 0, control, volumes,
                                            &err));
    CHECK(strcmp(writer.calls, "") == 0);
    vmx_control_free(control);
    CHECK(volumes[0] == NULL && volumes[1] == NULL);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    vmx_pool *pool = NULL;
    OK(vmx_open_pool(argv[1], &pool, &err));
    CHECK(pthread_mutex_init(&writer.lock, NULL) == 0);
    const char *const names[] = {"root", "data"};
    const char *const taken[] = {"root-1", "data-1"};
    for (int i = 0; i < 2; i++) {
        create(pool, names[i], MIB);
        writer.devices[i] = open_as(pool, names[i], VMX_READ_WRITE);
        members[i].pool = pool;
        members[i].volume = names[i];
        members[i].snapshot = taken[i];
    }
    failures(pool);

    reset();
    writer.thaws_that_fail = 1;
    vmx_volume *volumes[2] = {NULL, NULL};
    OK(vmx_snapshot_group(members, 2, freeze, thaw, &writer, 30000, NULL, volumes, &err));
    CHECK(strcmp(writer.calls, "fFtt") == 0);
    for (int i = 0; i < 2; i++) {
        CHECK(strcmp(vmx_volume_name(volumes[i]), taken[i]) == 0);
        CHECK(vmx_volume_is_snapshot(volumes[i]));
        vmx_volume_free(volumes[i]);
        CHECK(holds(pool, taken[i], 0, 'f', 1) && holds(pool, taken[i], 5, 'n', 1));
        vmx_device_free(writer.devices[i]);
    }
    vmx_pool_free(pool);
    wait_for_threads();
    puts("group: ok");
    return 0;
}
