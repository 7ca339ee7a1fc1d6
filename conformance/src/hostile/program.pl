# The program of a hostile task: perl -e PROGRAM -- <host directory> <seed> <act,act,..> [anything]. Each act runs in a
# process of its own until the task ends. The first process says "up", exits with code 43 at SIGTERM and 44 at SIGUSR1.
#
# Uses no module, so that an image needs perl's binary alone. Numbers of system calls are those of x86-64. Loops end with
# the task. What only a hole would allow is told by a line with BREACH.
($bait, $seed, $names) = @ARGV;
srand($seed);
%wanted = map { $_ => 1 } split /,/, $names;
$| = 1;
$SIG{CHLD} = 'IGNORE' unless $wanted{'zombies'};
$SIG{TERM} = $wanted{'deaf'} ? 'IGNORE' : sub { exit 43 };
$SIG{USR1} = $wanted{'deaf'} ? 'IGNORE' : sub { exit 44 };
if ($wanted{'deaf'}) { $SIG{$_} = 'IGNORE' for grep { defined && !/^(KILL|STOP|CHLD|NUM\d+|ZERO)$/ } keys %SIG }
$work = readlink '/proc/self/cwd';
print "BREACH the working directory is $work\n" if $work =~ /unreachable|^\Q$bait\E/;
for my $at (mounts()) { for my $file ($at, "$at/secret", "$at/bait/secret") { -f $file && open my $open, '<', $file or next; sysread $open, my $text, 100; print "BREACH $file is the host's\n" if $text =~ /^the host's secret/ } }
print "up\n";
nap(0.2);

@places = ('/local', '/secrets', '/alloc/data', '/alloc/tmp', '/tmp');
sub nap { select undef, undef, undef, $_[0] }
sub any { $_[rand @_] }
sub spit { my ($to, $text) = @_; open my $file, '>', $to or return; print $file $text; close $file }
sub device { my ($path, $mode, $number) = @_; syscall 133, $path, $mode + 0, $number + 0 }
sub pipe_at { device($_[0], 0010666, 0) }
sub exchange { my ($one, $other) = @_; syscall 316, -100, $one, -100, $other, 2 }
sub child { my ($does) = @_; my $pid = fork; return $pid if !defined $pid || $pid; $SIG{TERM} = $SIG{USR1} = 'DEFAULT'; eval { $does->() }; exit 0 }
sub sleep_on { sleep 100 while 1 }
sub mounts { open my $table, '<', '/proc/self/mounts' or return; map { my $at = (split / /)[1]; $at =~ s/\\(\d{3})/chr oct $1/ge; $at } <$table> }
sub others { opendir my $dir, '/proc' or return; grep { /^\d+$/ && $_ != $$ } readdir $dir }
sub in_dir { my ($dir) = @_; opendir my $open, $dir or return; map { "$dir/$_" } grep { !/^\.\.?$/ } readdir $open }
sub bind_at { my ($path) = @_; socket my $s, 1, 1, 0 or return; bind $s, pack 'S a108', 1, $path; listen $s, 5; $s }
sub rid { my ($path) = @_; unlink $path or rmdir $path or rename $path, "$path-" . int rand 1000 }

%acts = (
  # Names that jobs mount or that Nomad made: links, pipes, sockets and devices in turn.
  links => sub { while (1) {
    for my $in (@places) {
      for my $name ('x', 'y', 'sub', 'archive.tar') { rid("$in/$name"); symlink any("$bait/secret", $bait, '/', '..', '/proc/self/root', '/proc/1/fd/1', '/dev/zero', 'x', '/' . 'x/' x 500), "$in/$name" }
      mkdir "$in/a"; exchange("$in/a", "$in/x"); symlink $bait, "$in/a/x"; exchange("$in/sub", "$in/y") }
    nap(0.003) } },
  pipes => sub { while (1) {
    for my $in (@places) { for my $name ('x', 'y', 'sub', 'archive.tar') { rid("$in/$name"); pipe_at("$in/$name") } }
    nap(0.01) } },
  sockets => sub { my @kept; while (1) {
    for my $in (@places) { for my $name ('x', 'y', 'sub', 'archive.tar') { rid("$in/$name"); push @kept, bind_at("$in/$name"); shift @kept if @kept > 200 } }
    nap(0.01) } },
  devices => sub {
    for my $in (@places) {
      rid("$in/$_") for 'x', 'y', 'sub', 'archive.tar';
      device("$in/x", 0060666, 254 << 8); device("$in/y", 0020666, 1 << 8 | 5); device("$in/sub", 0020666, 1 << 8 | 1); device("$in/archive.tar", 0020666, 5 << 8 | 2);
      for my $name ('x', 'sub') { sysopen my $file, "$in/$name", 04000 or next; print "BREACH $in/$name can be opened\n" if -b $file || -c _ && (stat _)[6] == (1 << 8 | 1) } }
    sleep_on() },
  moves => sub { while (1) {
    for my $pair (['/alloc/data', '/alloc/moved'], ['/alloc/tmp', '/alloc/data/tmp'], ['/local', '/alloc/local'], ['/alloc/logs', '/alloc/away'], ['/secrets', '/local/secrets']) { rename $pair->[0], $pair->[1]; nap(0.001); rename $pair->[1], $pair->[0] }
    symlink $bait, '/alloc/data'; nap(0.002); unlink '/alloc/data'; mkdir '/alloc/data', 0777 } },
  gone => sub { for my $in ('/alloc/data', '/alloc/tmp', '/local', '/secrets', '/alloc') { rmdir $in; rename $in, "$in.old"; symlink $bait, $in }
    chmod 0, $_ for '/local', '/alloc', '/secrets', '/alloc/data'; chown 12345, 54321, '/local', '/alloc'; sleep_on() },
  deep => sub { for my $in ('/local', '/alloc/data') { chdir $in; for (1 .. 700) { mkdir 'd' x 200; chdir 'd' x 200; } spit('end', 'end') } sleep_on() },
  many => sub { mkdir '/local/many'; spit("/local/many/$_", '') for 1 .. 5000; spit('/local/large', 'x' x (1 << 24)); sleep_on() },
  names => sub { for my $in ('/local', '/alloc/data', '/secrets') { for my $byte (1 .. 255) { my $name = pack('C', $byte) x (1 + rand 255); next if $name =~ m{/}; mkdir "$in/$name"; spit("$in/$name/" . reverse($name), 'x'); symlink "$in/$name", "$in/l$name" } } sleep_on() },
  leases => sub { my @kept; while (1) { for my $in (@places) { for my $name ('x', 'y', 'archive.tar') { next if -l "$in/$name" || -p _; open my $file, '>>', "$in/$name" or next; fcntl $file, 1024, 1; flock $file, 6; push @kept, $file; shift @kept if @kept > 100 } } nap(0.05) } },
  # The log pipes: junk, and bytes taken out.
  logs => sub { nap(1); my @kept; while (1) {
    for my $path (in_dir('/alloc/logs')) { for my $how (01 | 04000, 00 | 04000, 02 | 04000) { sysopen my $file, $path, $how or next; syswrite $file, "junk\n"; my $read; sysread $file, $read, 4096; push @kept, $file; shift @kept if @kept > 50 } unlink $path; rename $path, "$path.old" }
    nap(0.02) } },
  flood => sub { nap(0.5); my $lines = "all work and no play \xff\x00\x1b[2J\n" x 3000; child(sub { syswrite STDERR, $lines while 1 }); syswrite STDOUT, $lines while 1 },
  line => sub { nap(0.5); my $part = 'x' x 65536; syswrite STDOUT, $part for 1 .. 200; sleep_on() },
  silent => sub { close STDOUT; close STDERR; for my $pid (others()) { for my $fd (0 .. 2) { truncate "/proc/$pid/fd/$fd", 0 } } sleep_on() },
  # Processes.
  forks => sub { for (1 .. 10000) { defined child(\&sleep_on) or nap(0.05) } sleep_on() },
  crowd => sub { for (1 .. 10000) { my $pid = fork; if (defined $pid && !$pid) { exec '/bin/sleep', '1000'; exit 0 } nap(0.1) unless defined $pid } sleep_on() },
  bomb => sub { $SIG{$_} = 'IGNORE' for 'TERM', 'HUP', 'INT'; while (1) { fork; nap(0.01) } },
  daemons => sub { for (1 .. 20) { child(sub { syscall 112; child(sub { $SIG{$_} = 'IGNORE' for 'TERM', 'HUP', 'INT', 'USR1'; chdir '/'; sleep_on() }) }) } sleep_on() },
  zombies => sub { for (1 .. 500) { my $pid = fork; exit 0 if defined $pid && !$pid } sleep_on() },
  deaf => \&sleep_on,
  stops => sub { while (1) { kill 'STOP', others(); nap(0.01) } },
  signals => sub { nap(0.3); while (1) { for my $number (1 .. 64) { next if $number == 17; kill $number, others() } nap(0.02) } },
  quits => sub { nap(rand 1.5); kill 'USR1', 1; sleep_on() },
  vfork => sub { for (1 .. 20) { child(sub { my $pid = syscall 56, 0x4000 | 17, 0, 0, 0, 0; sleep_on() }) } sleep_on() },
  traces => sub { my %traced; while (1) { for my $pid (others()) { next if $traced{$pid}; $traced{$pid} = syscall(101, 16, $pid + 0, 0, 0) == 0 } nap(0.005) } },
  peeks => sub { while (1) {
    for my $pid (others()) { for my $link ("/proc/$pid/cwd", "/proc/$pid/root", "/proc/$pid/exe", in_dir("/proc/$pid/fd")) { my $to = readlink $link; print "BREACH $link is $to\n" if $to =~ /\(unreachable\)|^\Q$bait\E/ } open my $memory, '+<', "/proc/$pid/mem"; open my $exe, '>>', "/proc/$pid/exe" }
    nap(0.002) } },
  scores => sub { while (1) { for my $pid ('self', others()) { spit("/proc/$pid/oom_score_adj", any(-1000, -999, 0, 1000)); spit("/proc/$pid/timerslack_ns", 1); spit("/proc/$pid/coredump_filter", '0x7f'); spit("/proc/$pid/autogroup", 19) } setpriority 0, 1, 19; setpriority 0, 0, -20; nap(0.05) } },
  titles => sub { for my $name (") R 1 1 1 1", "a\nb", "containerd-shim", "runc:[2:INIT]", "\xff\xfe(") { child(sub { my $title = "$name\0"; syscall 157, 15, $title; $0 = "containerd-shim-runc-v2 -namespace nomad -id $ENV{NOMAD_ALLOC_ID} $name"; sleep_on() }) } sleep_on() },
  # What is limited.
  memory => sub { nap(0.3); for (1 .. 3) { child(sub { my @kept; push @kept, 'x' x (1 << 22) while 1 }); nap(0.5) } sleep_on() },
  shm => sub { for my $to ('/dev/shm/x', '/dev/x', '/etc/hosts', '/tmp/x', '/secrets/big') { open my $file, '>>', $to or next; for (1 .. 100) { syswrite $file, 'x' x (1 << 20) or last } } sleep_on() },
  files => sub { my @kept; for (1 .. 100000) { open my $file, '<', '/dev/null' or last; push @kept, $file } sleep_on() },
  abstract => sub { my @kept; for my $name ('containerd', "/containerd-shim/nomad/x/shim.sock\@", map { "n$_" } 1 .. 200) { socket my $s, 1, 1, 0 or next; bind $s, pack 'S x a107', 1, $name; listen $s, 5; push @kept, $s } sleep_on() },
  # With its own cgroup mounted at /cg.
  groups => sub { my $at = '/cg'; for my $name ('inner', 'a b', '..c', "\xff\x01", 'x:y', 'cgroup.x', 'd' x 200, 1 .. 20) { mkdir "$at/$name" or next; child(sub { spit("$at/$name/cgroup.procs", $$); sleep_on() }); $at = "$at/$name" if rand() < 0.6 } sleep_on() },
  freezes => sub { nap(0.3); mkdir '/cg/ice'; spit('/cg/ice/cgroup.procs', $_) for others(); while (1) { spit('/cg/ice/freezer.state', 'FROZEN'); spit('/cg/ice/cgroup.freeze', 1); nap(0.02) } },
  freezes_itself => sub { nap(0.5); spit('/cg/freezer.state', 'FROZEN'); spit('/cg/cgroup.freeze', 1); sleep_on() },
  # With CAP_SYS_ADMIN.
  mounts => sub { my ($type, $none) = ('tmpfs', 'none'); while (1) { for my $at (@places, '/', '/proc', '/dev', '/etc/hosts') { my ($to, $from) = ($at, any($at, '/', '/proc')); syscall 165, $none, $to, $type, 0, $none; syscall 165, $from, $to, $none, 4096, $none; syscall 165, $none, $to, $none, 1 << 20, $none; syscall 166, $to, 2 } syscall 272, 0x20000; nap(0.05) } },
);
for my $name (sort keys %wanted) { child($acts{$name}) if $acts{$name} }
sleep 1 while 1;
