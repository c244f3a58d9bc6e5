#define _GNU_SOURCE
#include "snapshots.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum {
	most = 512, /* threads */
	stack = 128 * 1024,
	patience = 2, /* seconds after which an idle thread ends */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* protects the variables below */
static struct snapshot *first, **last = &first; /* queue of waiting snapshots */
static int threads;
static int spare; /* idle threads minus queued snapshots; may be negative */

/* Number of queued snapshots. A condition variable would not do: glibc may lose a signal
 * (glibc bug 25847). */
static sem_t queued;

__attribute__((constructor)) static void prepare(void)
{
	sem_init(&queued, 0, 0);
}

/* Returns the next snapshot, or NULL when the thread shall end. */
static struct snapshot *next(void)
{
	struct timespec until;
	struct snapshot *s = NULL;
	int late;

	for (;;) {
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_sec += patience;
		late = sem_clockwait(&queued, CLOCK_MONOTONIC, &until);
		if (late && errno == EINTR)
			continue;
		pthread_mutex_lock(&lock);
		if (!late) {
			s = first;
			first = s->next;
			if (!first)
				last = &first;
		} else if (spare > 0) {
			spare--;
			threads--;
		} else {
			pthread_mutex_unlock(&lock);
			continue;
		}
		pthread_mutex_unlock(&lock);
		return s;
	}
}

static void *take(void *unused)
{
	struct snapshot *s;

	pthread_setname_np(pthread_self(), "btrfs-snapshot");
	while ((s = next())) {
		uintptr_t call = s->call;
		int ended = s->ended;

		s->error = ioctl(s->dir, BTRFS_IOC_SNAP_CREATE_V2, &s->args) ? errno : 0;
		/* The caller frees s after this write. A pipe writes so few bytes at once. */
		while (write(ended, &call, sizeof call) < 0 && errno == EINTR)
			;
		pthread_mutex_lock(&lock);
		spare++;
		pthread_mutex_unlock(&lock);
	}
	return unused;
}

static int start_thread(void)
{
	pthread_attr_t attributes;
	pthread_t thread;
	sigset_t all, old;
	int error;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, stack);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	sigfillset(&all); /* only threads of Go handle signals */
	pthread_sigmask(SIG_SETMASK, &all, &old);
	error = pthread_create(&thread, &attributes, take, NULL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attributes);
	return error;
}

int start_snapshot(struct snapshot *s)
{
	int error = EAGAIN;

	pthread_mutex_lock(&lock);
	if (spare <= 0 && threads < most)
		error = start_thread();
	if (!error)
		threads++;
	else if (threads) /* the snapshot waits for one of them */
		spare--;
	if (threads) {
		s->next = NULL;
		*last = s;
		last = &s->next;
		sem_post(&queued);
		error = 0;
	}
	pthread_mutex_unlock(&lock);
	return error;
}
