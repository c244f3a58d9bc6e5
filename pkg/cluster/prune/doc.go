// Package prune finds and deletes the objects of removed nodes and lost disks. No driver may delete
// them, since they belong to another node. So an administrator does, with his own rights.
package prune
