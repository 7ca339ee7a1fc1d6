# volumes: mounts in docker's short form, source:target[:options]. A relative source is in the task's directory.
variable "image" {
  type    = string
  default = "docker.io/library/busybox:latest"
}

variable "directory" {
  type    = string
  default = "/srv/example"
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
        args    = ["-c", "grep hello /host/greeting && ! touch /host/x && touch /made/x && test -e /local/made/x"]

        volumes = [
          "${var.directory}:/host:ro",
          "local/made:/made",
        ]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
