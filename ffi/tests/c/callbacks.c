/* Threads, requests with callbacks, progress and cancellation: `callbacks URL`. */

#include "check.h"

#define BLOCK 4096
#define REQUESTS 64

static vmx_pool *pool;
static vmx_device *device;

/* Counts what has ended. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int ended;
static pthread_t waiting;

static void end(void) {
    pthread_mutex_lock(&lock);
    ended++;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
}

static void wait_for(int number) {
    pthread_mutex_lock(&lock);
    while (ended < number) {
        pthread_cond_wait(&changed, &lock);
    }
    CHECK(ended == number);
    ended = 0;
    pthread_mutex_unlock(&lock);
}

struct request {
    int calls;
    vmx_status expected;
};

static void completed(void *data, vmx_status status, vmx_error *error) {
    struct request *request = (struct request *)data;
    CHECK(++request->calls == 1);
    CHECK(status == request->expected && vmx_error_status(error) == status);
    CHECK((status == VMX_OK) == (error == NULL));
    CHECK(!pthread_equal(pthread_self(), waiting));
    vmx_error_free(error);
    end();
}

static void *write_and_read(void *data) {
    /* `err` of check.h belongs to the main thread. */
    vmx_error *mine = NULL;
    size_t part = *(size_t *)data;
    char block[BLOCK], back[BLOCK];
    for (int round = 0; round < 8; round++) {
        uint64_t offset = (part * 8 + (uint64_t)round) * BLOCK;
        memset(block, (int)part + 1, BLOCK);
        CHECK(vmx_write(device, offset, block, BLOCK, &mine) == VMX_OK);
        CHECK(vmx_read(device, offset, back, BLOCK, &mine) == VMX_OK);
        CHECK(memcmp(block, back, BLOCK) == 0);
        vmx_volume *volume = NULL;
        CHECK(vmx_get_volume(pool, "v", &volume, &mine) == VMX_OK);
        vmx_volume_free(volume);
        CHECK(vmx_get_volume(pool, "none", &volume, &mine) == VMX_NOT_FOUND);
        vmx_error_free(mine);
        mine = NULL;
    }
    return NULL;
}

static void threads_share_handles(void) {
    pthread_t threads[4];
    size_t parts[4];
    for (size_t i = 0; i < 4; i++) {
        parts[i] = i;
        CHECK(pthread_create(&threads[i], NULL, write_and_read, &parts[i]) == 0);
    }
    for (size_t i = 0; i < 4; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    for (size_t i = 0; i < 4; i++) {
        CHECK(holds(pool, "v", i * 8 * BLOCK, (int)i + 1, 8 * BLOCK));
    }
}

static void requests_end_once(void) {
    static struct request requests[REQUESTS];
    static char data[REQUESTS][BLOCK], back[REQUESTS][BLOCK];
    memset(requests, 0, sizeof requests);
    for (int i = 0; i < REQUESTS; i++) {
        memset(data[i], i + 1, BLOCK);
        OK(vmx_write_async(device, (uint64_t)i * BLOCK, data[i], BLOCK, completed, &requests[i],
                           &err));
    }
    wait_for(REQUESTS);
    struct request flush = {0, VMX_OK};
    OK(vmx_flush_async(device, completed, &flush, &err));
    wait_for(1);
    memset(requests, 0, sizeof requests);
    for (int i = 0; i < REQUESTS; i++) {
        OK(vmx_read_async(device, (uint64_t)i * BLOCK, back[i], BLOCK, completed, &requests[i],
                          &err));
    }
    wait_for(REQUESTS);
    CHECK(memcmp(data, back, sizeof data) == 0);

    struct request discard = {0, VMX_OK}, zero = {0, VMX_OK}, none = {0, VMX_OK};
    OK(vmx_discard_async(device, 0, BLOCK, completed, &discard, &err));
    vmx_zero_options options;
    memset(&options, 0, sizeof options);
    OK(vmx_write_zeroes_async(device, BLOCK, BLOCK, &options, sizeof options, completed, &zero,
                              &err));
    OK(vmx_read_async(device, 0, NULL, 0, completed, &none, &err));
    wait_for(3);
    CHECK(holds(pool, "v", 0, 0, 2 * BLOCK) && holds(pool, "v", 2 * BLOCK, 3, BLOCK));

    struct request past = {0, VMX_INVALID_INPUT};
    memset(back[0], 'x', BLOCK);
    OK(vmx_read_async(device, MIB, back[0], BLOCK, completed, &past, &err));
    wait_for(1);
    CHECK(back[0][0] == 'x');
    past.calls = 0;
    OK(vmx_write_async(device, MIB, back[0], BLOCK, completed, &past, &err));
    wait_for(1);
}

/* Within a callback: what waits is refused, what starts a request is not. */
static void again(void *data, vmx_status status, vmx_error *error) {
    struct request *next = (struct request *)data;
    CHECK(status == VMX_OK && error == NULL);
    vmx_error *mine = NULL;
    CHECK(vmx_flush(device, &mine) == VMX_INVALID_INPUT);
    CHECK(strstr(vmx_error_message(mine), "async") != NULL);
    vmx_error_free(mine);
    CHECK(vmx_device_size(device) == MIB);
    CHECK(vmx_flush_async(device, completed, next, NULL) == VMX_OK);
    end();
}

static void callbacks_may_start_requests(void) {
    struct request next = {0, VMX_OK};
    OK(vmx_flush_async(device, again, &next, &err));
    wait_for(2);
}

/* The last handles of a pool, freed in a callback. */
static void last(void *data, vmx_status status, vmx_error *error) {
    CHECK(status == VMX_OK && error == NULL);
    vmx_device_free((vmx_device *)data);
    end();
}

static void handles_may_go_first(void) {
    static struct request requests[REQUESTS];
    static char back[REQUESTS][BLOCK];
    memset(requests, 0, sizeof requests);
    vmx_pool *own = NULL;
    OK(vmx_open_pool("memory:", &own, &err));
    create(own, "w", MIB);
    put(own, "w", 0, 'w', MIB / 2);
    vmx_device *w = open_as(own, "w", VMX_READ_WRITE);
    for (int i = 0; i < REQUESTS; i++) {
        OK(vmx_read_async(w, (uint64_t)i * BLOCK, back[i], BLOCK, completed, &requests[i], &err));
    }
    vmx_device_free(w);
    wait_for(REQUESTS);
    for (int i = 0; i < REQUESTS; i++) {
        CHECK(back[i][0] == 'w' && back[i][BLOCK - 1] == 'w');
    }
    /* Nobody holds it any more. */
    OK(vmx_delete_volume(own, "w", &err));
    create(own, "w", MIB);
    w = open_as(own, "w", VMX_READ_WRITE);
    vmx_pool_free(own);
    OK(vmx_flush_async(w, last, w, &err));
    wait_for(1);
}

struct watch {
    vmx_control *control;
    uint64_t cancel_from, calls, done, total;
};

static void watch(void *data, uint64_t done, uint64_t total) {
    struct watch *seen = (struct watch *)data;
    CHECK(done >= seen->done && done <= total);
    seen->calls++;
    seen->done = done;
    seen->total = total;
    if (done >= seen->cancel_from) {
        vmx_cancel(seen->control);
    }
}

static void copies_can_be_watched_and_cancelled(void) {
    struct watch seen;
    memset(&seen, 0, sizeof seen);
    seen.cancel_from = UINT64_MAX;
    OK(vmx_new_control(watch, &seen, &seen.control, &err));
    create(pool, "large", 64 * MIB);
    put(pool, "large", 0, 'l', 8 * MIB);
    vmx_pool *other = NULL;
    OK(vmx_open_pool("memory:", &other, &err));
    OK(vmx_copy_volume_to(pool, "large", other, "whole", seen.control, NULL, &err));
    CHECK(seen.calls > 0 && seen.done == seen.total && seen.total >= 8 * MIB);
    CHECK(!vmx_control_is_cancelled(seen.control));
    vmx_control_free(seen.control);

    memset(&seen, 0, sizeof seen);
    OK(vmx_new_control(watch, &seen, &seen.control, &err));
    vmx_volume *volume = NULL;
    FAILS(VMX_TIMED_OUT,
          vmx_copy_volume_to(pool, "large", other, "part", seen.control, &volume, &err));
    CHECK(volume == NULL && seen.calls > 0 && vmx_control_is_cancelled(seen.control));
    OK(vmx_find_volume(other, "part", &volume, &err));
    CHECK(volume == NULL);
    /* Once cancelled, it stays so. */
    FAILS(VMX_TIMED_OUT, vmx_copy_volume_to(pool, "large", other, "part", seen.control, NULL, &err));
    vmx_control_free(seen.control);

    /* Before it began. */
    vmx_control *control = NULL;
    OK(vmx_new_control(NULL, NULL, &control, &err));
    OK(vmx_copy_volume_to(pool, "large", other, "second", control, NULL, &err));
    vmx_cancel(control);
    FAILS(VMX_TIMED_OUT, vmx_copy_volume(pool, "large", "third", control, NULL, &err));
    vmx_control_free(control);
    vmx_pool_free(other);
    OK(vmx_delete_volume(pool, "large", &err));
}

/* Tells the main thread that the copy is under way, and goes on once it was cancelled. */
static void stay(void *data, uint64_t done, uint64_t total) {
    vmx_control *const *control = (vmx_control *const *)data;
    (void)done, (void)total;
    if (!vmx_control_is_cancelled(*control)) {
        end();
    }
    while (!vmx_control_is_cancelled(*control)) {
        usleep(1000);
    }
}

static void *copy_until_cancelled(void *data) {
    vmx_error *mine = NULL;
    const vmx_control *control = *(vmx_control *const *)data;
    CHECK(vmx_copy_volume(pool, "long", "never", control, NULL, &mine) == VMX_TIMED_OUT);
    CHECK(vmx_error_is_retryable(mine));
    vmx_error_free(mine);
    return NULL;
}

static void copies_can_be_cancelled_by_others(void) {
    vmx_control *control = NULL;
    OK(vmx_new_control(stay, &control, &control, &err));
    create(pool, "long", 64 * MIB);
    put(pool, "long", 0, 'l', 8 * MIB);
    pthread_t copier;
    CHECK(pthread_create(&copier, NULL, copy_until_cancelled, &control) == 0);
    wait_for(1);
    vmx_cancel(control);
    CHECK(pthread_join(copier, NULL) == 0);
    vmx_control_free(control);
    vmx_volume *volume = NULL;
    OK(vmx_find_volume(pool, "never", &volume, &err));
    CHECK(volume == NULL);
    OK(vmx_delete_volume(pool, "long", &err));
}

/* A listing in a callback is refused, and goes on elsewhere. */
static void list(void *data, vmx_status status, vmx_error *error) {
    vmx_volumes *volumes = (vmx_volumes *)data;
    CHECK(status == VMX_OK && error == NULL);
    vmx_volume *volume = NULL;
    CHECK(vmx_next_volume(volumes, &volume, NULL) == VMX_INVALID_INPUT && volume == NULL);
    end();
}

static void listings_survive_callbacks(void) {
    vmx_volumes *volumes = NULL;
    vmx_volume *volume = NULL;
    OK(vmx_list_volumes(pool, &volumes, &err));
    OK(vmx_flush_async(device, list, volumes, &err));
    wait_for(1);
    OK(vmx_next_volume(volumes, &volume, &err));
    CHECK(volume != NULL);
    vmx_volume_free(volume);
    vmx_volumes_free(volumes);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    waiting = pthread_self();
    OK(vmx_open_pool(argv[1], &pool, &err));
    create(pool, "v", MIB);
    device = open_as(pool, "v", VMX_READ_WRITE);
    threads_share_handles();
    requests_end_once();
    callbacks_may_start_requests();
    handles_may_go_first();
    copies_can_be_watched_and_cancelled();
    copies_can_be_cancelled_by_others();
    listings_survive_callbacks();
    vmx_device_free(device);
    vmx_pool_free(pool);
    wait_for_threads();
    puts("callbacks: ok");
    return 0;
}
