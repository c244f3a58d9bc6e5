# Prints a table of a chart's values from the comments above them. Fails for a value without a
# comment. A commented key without a value describes all keys below it.
BEGIN { print "| value | default | is |"; print "|---|---|---|" }

/^ *#/ { sub(/^ *# ?/, ""); doc = doc (doc == "" ? "" : " ") $0; next }
/^ *$/ { doc = ""; next }

{
	match($0, /^ */)
	depth = RLENGTH
	if (inside != "" && depth > inside) { doc = ""; next }
	if (inside != "" && depth == inside && /^ *- /) { doc = ""; next }
	inside = ""
	key = $0; sub(/^ */, "", key); sub(/:.*/, "", key)
	value = $0; sub(/^[^:]*: */, "", value); if (value ~ /^[^:]*:$/) value = ""
	path[depth] = (depth == 0 ? "" : path[depth - 2] ".") key
	if (doc == "" && value == "") next
	if (doc == "") { print FILENAME ":" FNR ": " path[depth] " has no comment" > "/dev/stderr"; failed = 1 }
	if (value == "") inside = depth
	gsub(/\|/, "\\|", doc)
	printf "| `%s` | %s | %s |\n", path[depth], (value == "" ? "[see there](https://github.com/btrfs-csi/btrfs-csi/blob/main/charts/btrfs-csi/values.yaml)" : "`" value "`"), doc
	doc = ""
}

END { exit failed }
