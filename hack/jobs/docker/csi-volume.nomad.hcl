# A job with a volume of a CSI plugin, as it is written for Nomad's own docker driver.
variable "image" {
  type = string
}

variable "script" {
  type = string
}

job "csi-volume" {
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

    volume "stored" {
      type            = "csi"
      source          = "stored"
      attachment_mode = "file-system"
      access_mode     = "single-node-writer"
    }

    task "main" {
      driver = "docker"

      volume_mount {
        volume      = "stored"
        destination = "/stored"
      }

      config {
        image   = var.image
        command = "sh"
        args    = ["-euc", var.script]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
