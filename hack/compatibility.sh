# shellcheck shell=bash
# How the rows of hack/matrix ended: kept as lines of a file, and shown as a page. Sourced by hack/matrix, which sets RESULTS,
# ROWS, and for the row that runs CASES and WHICH.
#
# A line of the file is a row's name, what is recorded, and the value, with tabs between them. Of a row that ran: `versions`,
# `cases` (which they were), `passed`, `failed`, `skipped`, `seconds`, `date`, and a `failure`
# or a `skip` for each case. Of one that can't be had: `absent`, the reason, and `date`.

# record ROW LOG VERSIONS SECONDS: replaces what is kept of a row by how its run ended.
record() {
  local row=$1 log=$2 versions=$3 seconds=$4 passed failed skipped words=$WHICH
  read -r passed failed skipped < <(
    sed -n 's/^\(suite\|e2e\|guest\): \([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped\r\{0,1\}$/\2 \3 \4/p' "$log" | tail -n 1
  ) || true
  # shellcheck disable=SC2016 # the page is Markdown
  if ((${#CASES[@]} > 0)); then printf -v words '`%s` ' "${CASES[@]}"; fi
  versions="$(grep -m 1 '^containerd [^ ]*, ' "$log" | tr -d '\r' |
    sed -E 's/\+unknown|~ds1//g; s/^containerd ([^,]*), containerd-shim-runc-v2 \1,/containerd \1 with its shim,/')${versions:+, $versions}"
  replace_row "$row" < <(
    tell versions "$versions"
    tell cases "${words% }"
    if [[ -n $passed ]]; then
      tell passed "$passed"
      tell failed "$failed"
      tell skipped "$skipped"
    else
      tell failure "the run did not end with a result"
    fi
    tell seconds "$seconds"
    tell date "$(date -u +%F)"
    sed -n -e 's/^test \(.*[^ ]\) *\.\.\. FAILED\r\{0,1\}$/failure\t\1/p' -e 's/^skipped \(.*\)$/skip\t\1/p' "$log" |
      tr -d '\r' | sort -u
  )
}

# record_absent ROW WHY: unless it is known how the row ended once.
record_absent() {
  if [[ -z $(recorded "$1" date) || -n $(recorded "$1" absent) ]]; then
    replace_row "$1" < <(tell absent "$2" && tell date "$(date -u +%F)")
  fi
}

tell() { printf '%s\t%s\n' "$1" "$2"; }

# recorded ROW WHAT: prints the values.
recorded() { awk -F '\t' -v row="$1" -v what="$2" '$1 == row && $2 == what { print $3 }' "$RESULTS" 2>/dev/null || true; }

# replace_row ROW: by the lines of stdin, which lack its name.
replace_row() {
  local kept
  kept=$(awk -F '\t' -v row="$1" '$1 != row' "$RESULTS" 2>/dev/null || true)
  { [[ -z $kept ]] || printf '%s\n' "$kept" && sed "s/^/$1\t/"; } | LC_ALL=C sort -s -t $'\t' -k 1,1 >"$WORKDIR/replaced"
  write_as_builder "$RESULTS" <"$WORKDIR/replaced"
}

# write_as_builder FILE: from stdin. Whoever owns the repository owns what is written into it.
write_as_builder() {
  if [[ $1 == "$WORKDIR"/* ]]; then cat >"$1"; else as_builder tee "$1" >/dev/null; fi
}

# table ROW..
table() {
  local row
  printf '| row | versions | cases | passed | failed | skipped | seconds | date |\n|---|---|---|---|---|---|---|---|\n'
  for row; do
    [[ -n $(recorded "$row" versions) ]] || continue
    printf '| %s | %s |' "$row" "$(recorded "$row" versions)"
    # Those that are listed below the table make a cell that is too wide.
    recorded "$row" cases | sed 's/^`.*/a part/' | tr '\n' ' ' | sed 's/^/ /;s/$/|/'
    for what in passed failed skipped seconds date; do printf ' %s |' "$(recorded "$row" "$what")"; done
    printf '\n'
  done
}

# parts ROW..: the cases of the rows that have a part of the suite.
parts() {
  local row
  for row; do recorded "$row" cases | sed -n "s/^\`/- $row: \`/p"; done
}

# details ROW..: what failed, and what was skipped and why.
details() {
  local row
  for row; do
    recorded "$row" failure | sed "s/^/- $row failed: /"
    recorded "$row" skip | sed "s/^/- $row skipped: /"
  done
}

# absent ROW..: the rows that can't be had, and those that nobody has run.
absent() {
  local row
  for row; do
    recorded "$row" absent | sed "s/^/- $row: /;s/\$/ ($(recorded "$row" date))/"
    [[ -n $(recorded "$row" date) ]] || printf -- '- %s: not run yet\n' "$row"
  done
}

# Says so where nothing comes in.
or_nothing() { grep . || printf 'None.\n'; }

PAGE=docs/compatibility.md
GENERATED='<!-- From here on hack/matrix writes this page. -->'

# Writes the part of the page that the rows make; what stands before it is written by hand.
write_page() {
  local by_hand
  by_hand=$(sed "\|^$GENERATED\$|,\$d" "$PAGE")
  {
    printf '%s\n\n%s\n\n## Rows\n\n' "$by_hand" "$GENERATED"
    table "${ROWS[@]}"
    printf '\nThe part of the suite that a row has, by the words in the names of its cases:\n\n'
    parts "${ROWS[@]}" | or_nothing
    printf '\n## Failed or skipped, and why\n\n'
    details "${ROWS[@]}" | or_nothing
    printf '\n## Rows that could not be had, or were not run yet\n\n'
    absent "${ROWS[@]}" | or_nothing
  } >"$WORKDIR/page"
  write_as_builder "$PAGE" <"$WORKDIR/page"
  note "written: $PAGE"
}
