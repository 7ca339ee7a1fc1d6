# The redis job of the driver's documentation; the image's name is a variable, so that it can come from any registry.
variable "image" {
  type    = string
  default = "docker.io/library/redis:alpine"
}

job "redis" {
  datacenters = ["dc1"]

  group "redis-group" {
    task "redis-task" {
      driver = "containerd-driver"

      config {
        image = var.image
      }

      resources {
        cpu    = 500
        memory = 256
      }
    }
  }
}
