/* A management library of two GPUs, the neighbour first, that fails, throttles or hangs as the environment says:
 *
 *   NVML_STUB_FAIL=call=code[,call=code…]   these calls return that nvmlReturn code
 *   NVML_STUB_HANG=call                     this call does not return
 *   NVML_STUB_REASONS=0x40                  bits of the clock-event reasons
 *   NVML_STUB_CLOCKS=345,1980               the SM clock of one reading after the other, the last one from then on
 *   NVML_STUB_OTHERS=2                      that many other compute processes, of 100 MB each
 *   NVML_STUB_HIDE=1                        this process is not listed
 *   NVML_STUB_CONTEXTS=folder               also the processes, as far as they run, that files there are named after
 *   NVML_STUB_UNKNOWN=1                     the driver does not say how much memory a process uses
 *
 * The environment is read at each call, so one process can change it as it goes.
 */
#include <dirent.h>
#include <signal.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct { const char *uuid; unsigned load, watts, sm_mhz, memory_mhz, celsius; } Gpu;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;

static Gpu gpus[] = {
    {"GPU-00000000-aaaa-bbbb-cccc-000000000000", 1, 11, 111, 1111, 21},
    {"GPU-11111111-aaaa-bbbb-cccc-111111111111", 93, 650, 1980, 2619, 67},
    {"MIG-22222222-aaaa-bbbb-cccc-222222222222", 50, 300, 1500, 2619, 55},
};
static unsigned long long reads;
static const unsigned long long MB = 1024 * 1024;

static int told(const char *call) {
    const char *hang = getenv("NVML_STUB_HANG"), *fail = getenv("NVML_STUB_FAIL");
    if (hang && !strcmp(hang, call))
        for (;;) sleep(1000);
    size_t length = strlen(call);
    for (const char *at = fail; at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (!strncmp(at, call, length) && at[length] == '=') return atoi(at + length + 1);
    return 0;
}

static unsigned long long number(const char *name) {
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 0) : 0;
}

#define ANSWER(call) { int code = told(#call); if (code) return code; }

int nvmlInitWithFlags(unsigned flags) { (void)flags; ANSWER(nvmlInitWithFlags) return 0; }

const char *nvmlErrorString(int code) { (void)code; return "an error of the stub"; }

int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    ANSWER(nvmlSystemGetDriverVersion)
    snprintf(text, size, "999.1");
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    ANSWER(nvmlDeviceGetHandleByIndex_v2)
    if (index > 1) return 2;
    *handle = &gpus[index];
    return 0;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    ANSWER(nvmlDeviceGetHandleByUUID)
    for (size_t i = 0; i < sizeof gpus / sizeof *gpus; i++)
        if (!strcmp(uuid, gpus[i].uuid)) { *handle = &gpus[i]; return 0; }
    return 6;
}

int nvmlDeviceGetEnforcedPowerLimit(Gpu *gpu, unsigned *milliwatts) {
    ANSWER(nvmlDeviceGetEnforcedPowerLimit)
    (void)gpu;
    *milliwatts = 700000;
    return 0;
}

int nvmlDeviceGetUtilizationRates(Gpu *gpu, unsigned *rates) {
    ANSWER(nvmlDeviceGetUtilizationRates)
    rates[0] = gpu->load;
    rates[1] = gpu->load / 3;
    return 0;
}

int nvmlDeviceGetMemoryInfo(Gpu *gpu, unsigned long long *total_free_used) {
    ANSWER(nvmlDeviceGetMemoryInfo)
    (void)gpu;
    total_free_used[0] = 1000 * MB;
    total_free_used[1] = 600 * MB;
    total_free_used[2] = 400 * MB;
    return 0;
}

/* Other processes of that folder that run, at most so many; this one is not among them. */
static unsigned contexts(unsigned *pids, unsigned most) {
    const char *name = getenv("NVML_STUB_CONTEXTS");
    DIR *folder = name ? opendir(name) : NULL;
    unsigned count = 0;
    for (struct dirent *entry; folder && (entry = readdir(folder)) && count < most;) {
        int pid = atoi(entry->d_name);
        if (pid > 0 && pid != getpid() && !kill(pid, 0)) pids[count++] = (unsigned)pid;
    }
    if (folder) closedir(folder);
    return count;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Gpu *gpu, unsigned *count, Process *found) {
    ANSWER(nvmlDeviceGetComputeRunningProcesses_v3)
    (void)gpu;
    unsigned pids[64], open = contexts(pids, 64), made_up = (unsigned)number("NVML_STUB_OTHERS");
    unsigned own = !number("NVML_STUB_HIDE"), wanted = own + open + made_up;
    if (*count < wanted) { *count = wanted; return 7; }
    for (unsigned i = 0; i < wanted; i++) {
        unsigned mine = own && i == wanted - 1;
        unsigned long long used = number("NVML_STUB_UNKNOWN") ? ~0ULL : (mine ? 250 : 100) * MB;
        unsigned other = i < open ? pids[i] : 4000000 + i;
        found[i] = (Process){mine ? (unsigned)getpid() : other, used, 0, 0};
    }
    *count = wanted;
    return 0;
}

int nvmlDeviceGetPowerUsage(Gpu *gpu, unsigned *milliwatts) {
    ANSWER(nvmlDeviceGetPowerUsage)
    *milliwatts = gpu->watts * 1000;
    return 0;
}

int nvmlDeviceGetTotalEnergyConsumption(Gpu *gpu, unsigned long long *millijoules) {
    ANSWER(nvmlDeviceGetTotalEnergyConsumption)
    (void)gpu;
    *millijoules = 5000000 + 1500 * reads++; /* 1.5 J from each reading to the next */
    return 0;
}

int nvmlDeviceGetClockInfo(Gpu *gpu, unsigned kind, unsigned *mhz) {
    ANSWER(nvmlDeviceGetClockInfo)
    const char *clocks = getenv("NVML_STUB_CLOCKS");
    static unsigned place;
    static const char *before;
    *mhz = kind == 1 ? gpu->sm_mhz : gpu->memory_mhz; /* 1: SM, 2: memory */
    if (kind == 1 && clocks) {
        if (clocks != before) { before = clocks; place = 0; }
        for (unsigned i = 0; i < place && strchr(clocks, ','); i++) clocks = strchr(clocks, ',') + 1;
        *mhz = (unsigned)atoi(clocks);
        place++;
    }
    return 0;
}

int nvmlDeviceGetTemperature(Gpu *gpu, unsigned sensor, unsigned *celsius) {
    ANSWER(nvmlDeviceGetTemperature)
    (void)sensor;
    *celsius = gpu->celsius;
    return 0;
}

int nvmlDeviceGetCurrentClocksEventReasons(Gpu *gpu, unsigned long long *bits) {
    ANSWER(nvmlDeviceGetCurrentClocksEventReasons)
    (void)gpu;
    *bits = number("NVML_STUB_REASONS");
    return 0;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Gpu *gpu, unsigned long long *bits) {
    ANSWER(nvmlDeviceGetCurrentClocksThrottleReasons)
    (void)gpu;
    *bits = number("NVML_STUB_REASONS");
    return 0;
}
