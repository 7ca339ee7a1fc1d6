# memory_swappiness: 0 to 100, how readily the kernel swaps the task's memory out. For cgroup v1 only.
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
        args    = ["-c", "test $(cat /sys/fs/cgroup/memory/memory.swappiness) = 10"]

        memory_swap       = "64m"
        memory_swappiness = 10
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
