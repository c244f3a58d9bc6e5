// Package queue is the work queue of a controller.
package queue

import (
	"context"
	"errors"
	"sync"
	"time"

	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
)

// ErrPutOff is returned by a reconcile function that has added the key to the queue again by itself.
var ErrPutOff = errors.New("put off")

// workers is the number of keys that are reconciled concurrently.
const workers = 4

// Queue is a set of keys to reconcile.
type Queue[K comparable] struct {
	workqueue.TypedRateLimitingInterface[K]
}

// New returns a queue. A key that fails is retried after a delay that grows from least to most.
func New[K comparable](least, most time.Duration) Queue[K] {
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[K](least, most)
	return Queue[K]{workqueue.NewTypedRateLimitingQueue(limiter)}
}

// Run reconciles keys until ctx ends.
func (q Queue[K]) Run(ctx context.Context, reconcile func(context.Context, K) error) {
	context.AfterFunc(ctx, q.ShutDown)
	var all sync.WaitGroup
	for range workers {
		all.Go(func() { q.work(ctx, reconcile) })
	}
	all.Wait()
}

func (q Queue[K]) work(ctx context.Context, reconcile func(context.Context, K) error) {
	for {
		key, shutdown := q.Get()
		if shutdown {
			return
		}
		switch err := reconcile(ctx, key); {
		case err == nil:
			q.Forget(key)
		case !errors.Is(err, ErrPutOff):
			klog.FromContext(ctx).V(2).Info("Not reconciled yet", "key", key, "reason", err)
			q.AddRateLimited(key)
		}
		q.Done(key)
	}
}
