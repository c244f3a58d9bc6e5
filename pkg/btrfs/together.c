#include "together.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <time.h>

/* What all threads of one call share. */
struct try {
	pthread_rwlock_t gate;   /* held by the caller until the snapshots may begin */
	atomic_size_t waiting;   /* threads at the gate */
	sem_t begun;             /* the commit has begun */
	int filesystem;
	unsigned long start_sync, snap_create;
};

struct worker {
	pthread_t thread;
	struct try *try;
	struct snapshot *snapshot;
	int started;
};

static void *take(void *argument)
{
	struct worker *w = argument;

	atomic_fetch_add(&w->try->waiting, 1);
	pthread_rwlock_rdlock(&w->try->gate);
	pthread_rwlock_unlock(&w->try->gate);
	if (ioctl(w->snapshot->dir, w->try->snap_create, w->snapshot->args) != 0)
		w->snapshot->error = errno;
	return NULL;
}

static void *begin(void *argument)
{
	struct try *try = argument;
	uint64_t transaction;

	ioctl(try->filesystem, try->start_sync, &transaction);
	sem_post(&try->begun);
	return NULL;
}

static void wait_until_begun(sem_t *begun, long most_ms)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += most_ms / 1000;
	until.tv_nsec += most_ms % 1000 * 1000000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	while (sem_timedwait(begun, &until) != 0 && errno == EINTR)
		;
}

/*
 * Begins a commit, and then takes all snapshots at once, each in a thread that waits already. The
 * threads take no signals, which are for those of Go.
 */
void snapshots_together(int filesystem, struct snapshot *snapshots, size_t n,
			unsigned long start_sync, unsigned long snap_create, long most_lead_ms)
{
	struct try try = { .filesystem = filesystem, .start_sync = start_sync, .snap_create = snap_create };
	struct worker *workers = calloc(n, sizeof *workers);
	size_t started = 0;
	pthread_t leader;
	sigset_t all, before;
	int leads;

	if (workers == NULL) {
		for (size_t i = 0; i < n; i++)
			snapshots[i].error = ENOMEM;
		return;
	}
	pthread_rwlock_init(&try.gate, NULL);
	sem_init(&try.begun, 0, 0);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pthread_rwlock_wrlock(&try.gate);
	for (size_t i = 0; i < n; i++) {
		workers[i].try = &try;
		workers[i].snapshot = &snapshots[i];
		snapshots[i].error = pthread_create(&workers[i].thread, NULL, take, &workers[i]);
		workers[i].started = snapshots[i].error == 0;
		started += workers[i].started;
	}
	while (atomic_load(&try.waiting) < started)
		sched_yield();
	leads = pthread_create(&leader, NULL, begin, &try) == 0;
	if (leads)
		wait_until_begun(&try.begun, most_lead_ms);
	pthread_rwlock_unlock(&try.gate);
	for (size_t i = 0; i < n; i++)
		if (workers[i].started)
			pthread_join(workers[i].thread, NULL);
	if (leads)
		pthread_join(leader, NULL); /* the commits of the snapshots have ended its wait */
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	sem_destroy(&try.begun);
	pthread_rwlock_destroy(&try.gate);
	free(workers);
}
