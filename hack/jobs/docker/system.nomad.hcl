# A job as it is written for Nomad's own docker driver, one task on each node; of type "system" or "sysbatch".
variable "type" {
  type = string
}

job "system" {
  type = var.type

  group "main" {
    task "main" {
      driver = "docker"

      constraint {
        attribute = "${attr.driver.docker.version}"
        operator  = "version"
        value     = ">= 20.10"
      }

      constraint {
        attribute = "${attr.driver.docker.volumes.enabled}"
        value     = "true"
      }

      config {
        image   = "redis:7"
        command = "sh"
        args    = ["-c", "cat /host/hostname; [ ${NOMAD_META_type} = sysbatch ] || exec sleep 1000"]
        volumes = ["/etc/hostname:/host/hostname:ro"]
      }

      meta {
        type = var.type
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
