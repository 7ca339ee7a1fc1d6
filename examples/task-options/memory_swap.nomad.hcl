# memory_swap: how much memory and swap together the task gets. Without it, there is no swap.
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
        args    = ["-c", "cd /sys/fs/cgroup; cat memory/memory.memsw.limit_in_bytes .$(sed -n s/^0:://p /proc/self/cgroup)/memory.swap.max 2> /dev/null | grep -q -e 67108864 -e 33554432"]

        memory_swap = "64m"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
