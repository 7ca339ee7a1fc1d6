# force_pull: the registry is asked what the tag stands for by now, though the image may be here. What it still stands for is
# not fetched again.
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
        args    = ["-c", "test -e /bin/busybox"]

        force_pull = true
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
