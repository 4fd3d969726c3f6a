package javafx.scene.control

class PasswordField {
    String text = ''
}
