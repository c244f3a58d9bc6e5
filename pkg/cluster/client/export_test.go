package client

// KeptBy is Cluster.KeptBy without the check that the caches are synced.
var KeptBy = (*Cluster).keptBy
