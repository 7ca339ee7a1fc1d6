# memory_reservation: what is left to the task of its memory when the machine has too little for all.
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
        args    = ["-c", "cd /sys/fs/cgroup; cat memory/memory.soft_limit_in_bytes .$(sed -n s/^0:://p /proc/self/cgroup)/memory.low 2> /dev/null | grep -q 16777216"]

        memory_reservation = "16m"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
