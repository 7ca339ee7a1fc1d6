# host_network: the task is in the host's network, where the Nomad agent listens. Not with a network block in bridge mode.
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
        args    = ["-c", "grep -q ' 0A ' /proc/net/tcp"]

        host_network = true
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
