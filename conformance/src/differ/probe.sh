#!/bin/busybox sh
# Prints what a task has and can do, a section after a `== name` each, up to `== end`. With `exec` as its first argument, it
# prints what a command in the task has, and ends. Else PROBE_END says how it ends: by itself (a code, or `kill` and a signal),
# at any signal that can be caught (`wait`), or at none (`deaf`). Called with /bin/busybox alone, whatever PATH is.
b=/bin/busybox
section() { echo "== $1"; }
numbered() {
  local i=0 word
  for word in "$@"; do
    echo "$i $word"
    i=$((i + 1))
  done
}
act() {
  local name=$1 out
  shift
  if out=$("$@" 2>&1); then echo "$name works"; else echo "$name fails: ${out##*: }"; fi
}
serves() {
  $b httpd -f -p "127.0.0.1:$1" -h / 2>&1 &
  local pid=$!
  $b usleep 30000
  kill "$pid" 2>/dev/null
}

process() {
  section argv
  numbered "$0" "$@"
  section cwd
  pwd
  section env
  $b tr '\0' '\n' </proc/$$/environ
  section id
  echo "user $($b id -u)"
  echo "group $($b id -g)"
  echo "groups $($b id -G)"
  section status
  $b grep -E '^(Umask|Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Speculation|Sig(Blk|Ign)|Cpus_allowed_list|Mems_allowed_list|Threads)' /proc/$$/status
  section limits
  $b tail -n +2 /proc/$$/limits
  section process
  for file in oom_score_adj coredump_filter loginuid attr/current setgroups timerslack_ns; do
    [ -r "/proc/$$/$file" ] && echo "$file $($b head -c 200 "/proc/$$/$file" 2>/dev/null | $b tr -d '\0')"
  done
  echo "nice $($b cut -d ' ' -f 19 /proc/$$/stat)"
  section namespaces
  for name in cgroup ipc mnt net pid user uts; do echo "$name $($b readlink "/proc/$$/ns/$name")"; done
  section groups
  $b cat /proc/$$/cgroup
  section streams
  for number in 0 1 2; do
    [ -t $number ] && echo "$number terminal" || echo "$number $($b readlink "/proc/$$/fd/$number")"
  done
}

task() {
  section first
  numbered $($b tr '\0 ' '\n_' </proc/1/cmdline)
  section mounts
  $b cat /proc/$$/mountinfo
  for file in hosts hostname resolv.conf; do
    section "$file"
    $b cat "/etc/$file"
  done
  section names
  echo "hostname $($b hostname)"
  echo "domain $($b cat /proc/sys/kernel/domainname)"
  section sysctl
  $b grep -s '' /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range \
    /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/ip_nonlocal_bind /proc/sys/net/ipv4/tcp_syncookies \
    /proc/sys/net/ipv4/conf/all/* /proc/sys/net/ipv4/conf/eth0/forwarding /proc/sys/net/ipv4/conf/eth0/route_localnet \
    /proc/sys/net/ipv6/conf/*/disable_ipv6 /proc/sys/net/ipv6/conf/*/forwarding /proc/sys/net/ipv6/conf/*/accept_ra \
    /proc/sys/net/core/somaxconn /proc/sys/kernel/shm* /proc/sys/kernel/msg* /proc/sys/kernel/sem /proc/sys/fs/mqueue/*
  section devices
  for file in /dev/* /dev/[!f]*/*; do
    if [ -L "$file" ]; then
      echo "$file -> $($b readlink "$file")"
    elif [ -e "$file" ]; then
      $b stat -c '%n %F %a %u:%g %t:%T' "$file"
    fi
  done
  section files
  for file in / /tmp /var /root /home/app /dev /dev/shm /proc /sys /local /alloc /alloc/data /alloc/logs /alloc/tmp /secrets \
    /etc/hosts /etc/hostname /etc/resolv.conf /etc/mtab /.dockerenv /data /fresh/new /missing/dir /shared /v1 /v2 /run/secrets; do
    [ -e "$file" ] && $b stat -c '%n %F %a %u:%g' "$file"
  done
  section contents
  for directory in /data /fresh/new /home/app /shared /v1 /v2 /local /alloc /secrets; do
    [ -d "$directory" ] && echo "$directory $($b ls -A "$directory" 2>&1 | $b tr '\n' ' ')"
  done
  section cgroups
  for file in memory/memory.limit_in_bytes memory/memory.soft_limit_in_bytes memory/memory.memsw.limit_in_bytes \
    memory/memory.swappiness memory/memory.oom_control memory/memory.use_hierarchy cpu/cpu.shares cpu/cpu.cfs_quota_us \
    cpu/cpu.cfs_period_us cpuset/cpuset.cpus cpuset/cpuset.mems pids/pids.max blkio/blkio.weight devices/devices.list \
    memory.max memory.low memory.high memory.swap.max cpu.max cpu.weight cpuset.cpus pids.max io.weight; do
    [ -r "/sys/fs/cgroup/$file" ] && echo "$file $($b head -n 40 "/sys/fs/cgroup/$file" | $b sort | $b tr '\n' ';')"
  done
  section links
  $b ip -o link
  section addresses
  $b ip -o address
  section routes
  $b ip route
  section writable
  for directory in / /etc /tmp /var /root /home/app /dev /dev/shm /proc/sys/kernel /proc/sys/net/core /sys/fs/cgroup \
    /sys/fs/cgroup/memory /local /alloc /alloc/data /alloc/logs /alloc/tmp /secrets /data /fresh/new /shared /v1 /v2; do
    [ -d "$directory" ] || continue
    if (: >"$directory/.probe") 2>/dev/null; then
      echo "$directory yes"
      $b rm -f "$directory/.probe"
    else
      echo "$directory no"
    fi
  done
  for file in /etc/hosts /etc/hostname /etc/resolv.conf /proc/sysrq-trigger /proc/sys/net/core/somaxconn /proc/1/oom_score_adj; do
    if (: >>"$file") 2>/dev/null; then echo "$file yes"; else echo "$file no"; fi
  done
  section readable
  for file in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug /proc/interrupts /proc/latency_stats /proc/kmsg /proc/1/environ \
    /sys/firmware /sys/devices/virtual/powercap /sys/kernel/security /proc/acpi /proc/scsi /proc/asound; do
    if [ -d "$file" ]; then
      echo "$file $($b ls "$file" 2>/dev/null | $b wc -l)"
    elif [ -e "$file" ]; then
      echo "$file $($b timeout 0.2 $b head -c 1 "$file" 2>/dev/null | $b wc -c)"
    fi
  done
  section acts
  act mknod $b mknod /dev/shm/.probe c 1 3
  $b rm -f /dev/shm/.probe
  act mount $b mount -t tmpfs none /proc/acpi
  act chroot $b chroot / $b true
  act 'user namespace' $b unshare -U $b true
  act 'network namespace' $b unshare -n $b true
  act 'larger limit' $b sh -c 'ulimit -Hn 1048577'
  act 'kernel log' $b dmesg
  act ping $b ping -c 1 -W 1 127.0.0.1
  act 'raw socket' $b arping -c 1 -w 1 -I lo 127.0.0.1
  [ -n "$($b ip -o link show eth0 2>/dev/null)" ] && echo "port 80 $(serves 80)"
  act chown $b sh -c ': >/dev/shm/.own && /bin/busybox chown 7:7 /dev/shm/.own'
  $b rm -f /dev/shm/.own
}

if [ "$1" = exec ]; then
  process "$@"
  section end
  exit 0
fi
case $PROBE_END in
  wait) for number in 1 2 3 10 12 15 37; do trap "echo 'got $number'; exit $((40 + number))" $number; done ;;
esac
process "$@"
task
section end
echo "a line on stderr" >&2
# Docker's driver misses the output of what ends at once.
case $PROBE_END in wait | deaf) ;; *) $b sleep 2 ;; esac
case $PROBE_END in
  wait) while :; do $b sleep 1000 & wait $!; done ;;
  deaf)
    trap '' 1 2 3 10 12 15
    while :; do $b sleep 1000; done
    ;;
  kill*) kill "${PROBE_END#kill}" $$ ;;
  memory) head -c 500000000 /dev/zero | tail -n 1 ;;
  *) exit "${PROBE_END:-0}" ;;
esac
