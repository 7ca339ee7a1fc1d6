# userns = "host": users are the host's, as they are without it. The operator has to allow it: allowed_modes { userns = ["host"] }.
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
        args    = ["-c", "grep -q '^ *0 *0 *4294967295$' /proc/self/uid_map"]

        userns = "host"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
