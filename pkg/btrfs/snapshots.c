#include "snapshots.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum {
	stack = 128 * 1024,
	patience = 10, /* seconds that a thread waits for the next one */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* protects what follows */
static pthread_cond_t queued = PTHREAD_COND_INITIALIZER;
static struct snapshot *first, **last = &first; /* those that no thread has taken up */
static int waiting;                             /* how many they are */
static int idle;                                /* threads that wait for one */

/* Returns the next one, NULL when none came for a while. The caller holds lock. */
static struct snapshot *next(void)
{
	struct timespec until;
	struct snapshot *s;
	int late = 0;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += patience;
	idle++;
	while (!first && !late)
		late = pthread_cond_timedwait(&queued, &lock, &until);
	idle--;
	s = first;
	if (s) {
		waiting--;
		first = s->next;
		if (!first)
			last = &first;
	}
	return s;
}

static void *take(void *unused)
{
	struct snapshot *s;

	pthread_mutex_lock(&lock);
	while ((s = next())) {
		uintptr_t call = s->call;
		int ended = s->ended;

		pthread_mutex_unlock(&lock);
		s->error = ioctl(s->dir, BTRFS_IOC_SNAP_CREATE_V2, &s->args) ? errno : 0;
		/* This ends the life of s. A pipe takes so little whole. */
		while (write(ended, &call, sizeof call) < 0 && errno == EINTR)
			;
		pthread_mutex_lock(&lock);
	}
	pthread_mutex_unlock(&lock);
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
	sigfillset(&all); /* signals are for the threads of Go */
	pthread_sigmask(SIG_SETMASK, &all, &old);
	error = pthread_create(&thread, &attributes, take, NULL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attributes);
	return error;
}

int start_snapshot(struct snapshot *s)
{
	int error = 0;

	pthread_mutex_lock(&lock);
	if (waiting >= idle) /* each of these has one to take up already */
		error = start_thread();
	if (!error) {
		s->next = NULL;
		*last = s;
		last = &s->next;
		waiting++;
		pthread_cond_signal(&queued);
	}
	pthread_mutex_unlock(&lock);
	return error;
}
