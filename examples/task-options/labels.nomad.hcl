# labels: written on the container's record in containerd, as `ctr -n nomad containers info` shows it. Keys
# that are no plain words need a map.
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

    task "before" {
      driver = "containerd-driver"

      lifecycle {
        hook = "prestart"
      }

      config {
        image   = var.image
        command = "true"
        labels  = { "example.com/tier" = "front" }
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }

    task "main" {
      driver = "containerd-driver"

      config {
        image   = var.image
        command = "sh"
        args    = ["-c", "test -e /bin/busybox"]

        labels {
          team = "web"
          tier = "front"
        }
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
