# cgroupns = "private": the task sees its own control group as the root of all.
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
        args    = ["-c", "! grep -q nomad /proc/self/cgroup"]

        cgroupns = "private"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
