# Two tasks of one group, which share /alloc and nothing else.
variable "image" {
  type = string
}

job "pair" {
  type = "batch"

  group "main" {
    task "writer" {
      driver = "containerd-driver"

      config {
        image   = var.image
        command = "sh"
        args    = ["-c", "trap 'exit 0' TERM; echo own >/local/own; echo shared >/alloc/data/shared; sleep 1000 & wait"]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }

    task "reader" {
      driver = "containerd-driver"

      config {
        image   = var.image
        command = "sh"
        args    = ["-c", "trap 'exit 0' TERM; until [ -e /alloc/data/shared ]; do sleep 0.1; done; cat /alloc/data/shared; ls /local; echo done; sleep 1000 & wait"]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
