# memory_hard_limit: a limit above the memory of the resources, which is left to the task.
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
        args    = ["-c", "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes .$(sed -n s/^0:://p /proc/self/cgroup)/memory.max 2> /dev/null | grep -q 67108864"]

        memory_hard_limit = 64
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
