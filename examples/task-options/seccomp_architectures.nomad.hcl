# seccomp_architectures = "image": the seccomp filter knows the programs of the host's architecture and of the image's, and
# no others. A 32-bit program in an image for 64 bits would be killed.
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
        args    = ["-c", "grep -q \"^Seccomp:[[:space:]]*2$\" /proc/self/status"]

        seccomp_architectures = "image"
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
