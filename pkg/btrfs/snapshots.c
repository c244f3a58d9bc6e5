#include "snapshots.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { stack = 128 * 1024 };

static void *take(void *p)
{
	struct snapshot *s = p;
	int number = s->number, ended = s->ended;

	s->error = ioctl(s->dir, BTRFS_IOC_SNAP_CREATE_V2, &s->args) ? errno : 0;
	/* The last one ends the life of s. A pipe takes an int whole. */
	while (write(ended, &number, sizeof number) < 0 && errno == EINTR)
		;
	return NULL;
}

void take_snapshots(struct snapshot *snapshots, int count)
{
	pthread_attr_t attributes;
	pthread_t thread;
	sigset_t all, old;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, stack);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	sigfillset(&all); /* signals are for the threads of Go */
	pthread_sigmask(SIG_SETMASK, &all, &old);
	for (int i = 0; i < count; i++)
		if (pthread_create(&thread, &attributes, take, &snapshots[i]))
			take(&snapshots[i]);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attributes);
}
