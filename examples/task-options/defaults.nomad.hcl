# No option at all: what a task can't do by default. Each try has to fail, and for the reason that it is denied.
variable "image" {
  type    = string
  default = "docker.io/library/busybox:latest"
}

job "option" {
  type = "batch"

  group "main" {
    restart {
      attempts = 0
      mode     = "fail"
    }
    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "main" {
      driver = "containerd-driver"

      config {
        image   = var.image
        command = "sh"
        args    = ["/local/try"]
      }

      template {
        destination = "local/try"
        data        = <<-END
          denied() { # reason, command
            said=$(eval "$2" 2>&1)
            case $said in
              *"$1"*) ;;
              *) echo "not denied: $2: $said"; failed=1 ;;
            esac
          }
          not_permitted="not permitted"
          read_only="Read-only file system"
          failed=0

          # Mounts, and namespaces in which it could make them.
          denied "ermission denied" "mount -t tmpfs none /tmp"
          denied "$not_permitted" "umount /proc/kcore"
          denied "$not_permitted" "unshare -U true"
          denied "$not_permitted" "unshare -m true"
          denied "$not_permitted" "nsenter -t 1 -m true"
          denied "$not_permitted" "pivot_root /tmp /tmp"

          # The kernel: modules, swap, log, clock, names, network.
          denied "$not_permitted" "insmod /bin/busybox"
          denied "$not_permitted" "rmmod overlay"
          denied "$not_permitted" "swapon /bin/busybox"
          denied "$not_permitted" "dmesg"
          denied "$not_permitted" "date -s '2020-01-01 00:00'"
          denied "$not_permitted" "hostname elsewhere"
          denied "$not_permitted" "ip link set lo down"
          denied "ermission denied" "renice -n -5 $$"

          # Its files.
          denied "$read_only" "echo x > /proc/sys/kernel/core_pattern"
          denied "$read_only" "echo 1 > /proc/irq/default_smp_affinity"
          denied "$read_only" "echo x > /sys/kernel/uevent_helper"
          denied "$read_only" "mkdir /sys/fs/cgroup/mine"
          test "$(cat /proc/kcore /proc/keys 2> /dev/null | wc -c)" = 0 || failed=1

          # The host's devices and processes.
          mknod /tmp/disk b 7 0
          mknod /tmp/memory c 1 1
          denied "$not_permitted" "head -c 1 /tmp/disk"
          denied "$not_permitted" "head -c 1 /tmp/memory"
          test "$(readlink /proc/1/exe)" = "$(readlink /proc/$$/exe)" || failed=1
          test "$$" = 1 || failed=1

          exit $failed
        END
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
