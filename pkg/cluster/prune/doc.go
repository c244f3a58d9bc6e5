// Package prune finds and deletes what a removed node, or a lost disk, has left in the
// cluster. No driver may touch it: it is another node's. It is for people, with the rights of
// an administrator.
package prune
